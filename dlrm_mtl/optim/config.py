"""The ``optimizer`` part of a run's configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dlrm_mtl.core.parts import Part
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.embeddings.rules import RowWiseAdagrad, TableRule
from dlrm_mtl.optim.dense.adam import AdamConfig
from dlrm_mtl.optim.dense.base import AnyDenseOptimizerConfig


class ScheduleConfig(Strict):
    """A factor on both learning rates, by step: linear warm-up, then constant, linear or cosine decay."""

    warmup_steps: int = Field(default=0, ge=0)
    """Number of steps over which the factor rises from near 0 to 1."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Shape of the decay after the warm-up, until the last step of the run."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Factor at the last step."""


class OptimizerConfig(Strict):
    """Optimizers of the tables (`sparse`) and of all other parameters (`dense`)."""

    sparse: Annotated[TableRule, Part("table_optimizer", default="rowwise_adagrad")] = RowWiseAdagrad()
    """Optimizer of the embedding tables."""
    dense: AnyDenseOptimizerConfig = AdamConfig()
    """Optimizer of all other parameters."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule."""
