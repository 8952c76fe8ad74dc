"""The ``optimizer`` part of a run's configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dlrm_mtl.core.parts import Part
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import PartConfig, Strict
from dlrm_mtl.embeddings import rules
from dlrm_mtl.optim.dense.adam import AdamConfig
from dlrm_mtl.optim.dense.base import AnyDenseOptimizerConfig, LearningRate


class ClippyLimits(Strict):
    """What the Clippy rule is told, for tables and for dense parameters."""

    lambda_rel: float = Field(default=0.5, ge=0)
    """A coordinate w moves at most lambda_rel |w| + lambda_abs in a step."""
    lambda_abs: float = Field(default=1e-2, ge=0)
    """See lambda_rel."""
    initial_accumulator_value: float = Field(default=0.1, ge=0)
    """What the accumulators start from."""
    accumulator: Literal["standard", "delayed"] = "standard"
    """Whether the root is taken after adding the new squares (the paper) or before (TF Recommenders)."""


class TableOptimizerConfig(PartConfig):
    """A row-wise update rule of the two-phase optimizer."""

    def build(self) -> rules.RowWiseRule:
        """The rule."""
        raise NotImplementedError


@register("table_optimizer", "clippy_rowwise_adagrad", order=10)
class ClippyRowWiseAdagradConfig(ClippyLimits, TableOptimizerConfig):
    """Row-wise AdaGrad that limits how far any coordinate moves in a step: Clippy, for tables."""

    name: Literal["clippy_rowwise_adagrad"] = "clippy_rowwise_adagrad"
    learning_rate: LearningRate = 0.1
    """Step size."""
    eps: float = Field(default=0.0, ge=0)
    """Added to the accumulator under the root."""
    scope: Literal["table", "row"] = "table"
    """One factor for all rows of a table that the global batch touches, or one for each row."""

    def build(self) -> rules.RowWiseRule:
        """The rule."""
        return rules.ClippyRowWiseAdagrad(
            self.learning_rate,
            self.lambda_rel,
            self.lambda_abs,
            self.initial_accumulator_value,
            self.eps,
            self.accumulator,
            self.scope,
        )


@register("table_optimizer", "rowwise_adagrad", order=20)
class RowWiseAdagradConfig(TableOptimizerConfig):
    """AdaGrad with one accumulator per row: the mean of the squares of the whole row's gradient."""

    name: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    learning_rate: LearningRate = 0.02
    """Step size."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the accumulator."""
    initial_accumulator_value: float = Field(default=0.0, ge=0)
    """What the accumulators start from."""

    def build(self) -> rules.RowWiseRule:
        """The rule."""
        return rules.RowWiseAdagrad(self.learning_rate, self.eps, self.initial_accumulator_value)


@register("table_optimizer", "rowwise_adam", order=30)
class RowWiseAdamConfig(TableOptimizerConfig):
    """Adam with the second moment per row, of the rows that a batch touches."""

    name: Literal["rowwise_adam"] = "rowwise_adam"
    learning_rate: LearningRate = 1e-3
    """Step size."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""

    def build(self) -> rules.RowWiseRule:
        """The rule."""
        return rules.RowWiseAdam(self.learning_rate, self.betas, self.eps)


@register("table_optimizer", "sgd", order=40)
class SparseSGDConfig(TableOptimizerConfig):
    """Stochastic gradient descent: w <- w - learning_rate g."""

    name: Literal["sgd"] = "sgd"
    learning_rate: LearningRate = 0.1
    """Step size."""

    def build(self) -> rules.RowWiseRule:
        """The rule."""
        return rules.SGD(self.learning_rate)


class ScheduleConfig(Strict):
    """A factor on both learning rates, by step: linear warm-up, then constant, linear or cosine decay."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the factor rises from near 0 to 1."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How the factor falls after the warm-up, until the last step of the run."""
    final: float = Field(default=0.0, ge=0, le=1)
    """The factor at the last step."""


class OptimizerConfig(Strict):
    """What trains the tables (`sparse`) and everything else (`dense`)."""

    sparse: Annotated[TableOptimizerConfig, Part("table_optimizer", default="rowwise_adagrad")] = RowWiseAdagradConfig()
    """The optimizer of the embedding tables."""
    dense: AnyDenseOptimizerConfig = AdamConfig()
    """The optimizer of all other parameters."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule."""
