"""Single-task: every task has its own layers; the baseline for sharing."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.models.blocks import Block, ParallelMLP, StackConfig


class SingleTaskConfig(StackConfig):
    """One stack of layers per task; tasks share no layer."""

    name: Literal["single_task"] = "single_task"


@register("architecture", "single_task", config=SingleTaskConfig, order=20)
class SingleTask(Block):
    """h_t = MLP_t(x): T stacks that share nothing.

    Earlier parts of the model, mainly the tables, are still shared by the tasks. For models that share nothing, train one
    run per task, which also lets each stop at its own best epoch.

    Parameters with layers h and T tasks: T P(D; h), where P counts a stack with biases.
    """

    def __init__(self, config: SingleTaskConfig, in_features: int, tasks: int) -> None:
        super().__init__()
        self.bottoms = ParallelMLP(tasks, in_features, config)
        self.out_features = self.bottoms.out_features

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, T, d]."""
        out: Tensor = self.bottoms(features)
        return out
