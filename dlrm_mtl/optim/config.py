"""The ``optimizer`` part of a run's configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dlrm_mtl.core.schema import Strict
from dlrm_mtl.optim.clippy import ClippyOptions

LearningRate = Annotated[float, Field(gt=0)]


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


class ClippyRowWiseAdagradConfig(ClippyLimits):
    """Row-wise AdaGrad that limits how far any coordinate moves in a step: Clippy, for tables."""

    name: Literal["clippy_rowwise_adagrad"] = "clippy_rowwise_adagrad"
    learning_rate: LearningRate = 0.1
    """Step size."""
    eps: float = Field(default=0.0, ge=0)
    """Added to the accumulator under the root."""
    scope: Literal["table", "row"] = "table"
    """One factor for all rows of a table that the global batch touches, or one for each row."""


class RowWiseAdagradConfig(Strict):
    """AdaGrad with one accumulator per row: the mean of the squares of the whole row's gradient."""

    name: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    learning_rate: LearningRate = 0.02
    """Step size."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the accumulator."""
    initial_accumulator_value: float = Field(default=0.0, ge=0)
    """What the accumulators start from."""


class RowWiseAdamConfig(Strict):
    """Adam with the second moment per row, of the rows that a batch touches."""

    name: Literal["rowwise_adam"] = "rowwise_adam"
    learning_rate: LearningRate = 1e-3
    """Step size."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""


class SparseSGDConfig(Strict):
    """Stochastic gradient descent: w <- w - learning_rate g."""

    name: Literal["sgd"] = "sgd"
    learning_rate: LearningRate = 0.1
    """Step size."""


class AdamConfig(Strict):
    """Adam with decoupled weight decay (AdamW)."""

    name: Literal["adam"] = "adam"
    learning_rate: LearningRate = 1e-3
    """Step size."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, ge=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""


class AdagradConfig(Strict):
    """AdaGrad with one accumulator per parameter."""

    name: Literal["adagrad"] = "adagrad"
    learning_rate: LearningRate = 0.01
    """Step size."""
    initial_accumulator_value: float = Field(default=0.1, ge=0)
    """What the accumulators start from."""
    eps: float = Field(default=1e-10, ge=0)
    """Added to the root of the accumulator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty, added to the gradient."""


class ClippyAdagradConfig(ClippyLimits):
    """AdaGrad that limits how far any coordinate moves in a step: Clippy, one factor per tensor."""

    name: Literal["clippy_adagrad"] = "clippy_adagrad"
    learning_rate: LearningRate = 0.1
    """Step size; above lambda_abs, or nothing is ever clipped with the standard accumulator."""
    eps: float = Field(default=0.0, ge=0)
    """Added to the root of the accumulator, or under it (eps_inside)."""
    eps_inside: bool = False
    """Whether eps stands under the root."""
    accumulator_relative_threshold: float = Field(default=0.0, ge=0)
    """Added to the allowed move: this times 1 / sqrt(accumulator)."""
    clip_accumulator_update: bool = False
    """Whether the accumulator takes the clipped gradient's square; with the delayed accumulator only."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, outside the limit."""

    def options(self) -> ClippyOptions:
        """The rule's options."""
        return ClippyOptions(**self.model_dump(exclude={"name", "learning_rate", "weight_decay"}))

    @model_validator(mode="after")
    def _options_fit(self) -> ClippyAdagradConfig:
        self.options()
        return self


class DenseSGDConfig(Strict):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    learning_rate: LearningRate = 0.1
    """Step size."""


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

    sparse: Annotated[
        ClippyRowWiseAdagradConfig | RowWiseAdagradConfig | RowWiseAdamConfig | SparseSGDConfig,
        Field(discriminator="name"),
    ] = RowWiseAdagradConfig()
    """The optimizer of the embedding tables."""
    dense: Annotated[AdamConfig | AdagradConfig | ClippyAdagradConfig | DenseSGDConfig, Field(discriminator="name")] = (
        AdamConfig()
    )
    """The optimizer of all other parameters."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule."""
