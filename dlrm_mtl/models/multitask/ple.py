"""CGC and PLE: shared experts and experts of each task, on any number of levels (Tang et al., RecSys 2020).

doi 10.1145/3383313.3412236. One level is CGC (customized gate control), several are PLE (progressive layered extraction).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dlrm_mtl.core.parts import RunConfigLike
from dlrm_mtl.core.registry import register
from dlrm_mtl.models.blocks import (
    Block,
    ExpertCounts,
    Gates,
    LevelsConfig,
    ParallelMLP,
    StackConfig,
    check_task_experts,
    counts_per_task,
    for_experts,
)


class PLEConfig(LevelsConfig):
    """Shared experts and experts of each task; a task's gate sees its own and the shared ones. One level is CGC."""

    name: Literal["ple"] = "ple"
    task_experts: ExpertCounts = 1
    """Number of experts of each task on every level: one number, or one per task."""
    shared_experts: int = Field(default=1, ge=0)
    """Number of experts that all tasks share, on every level; with 0 tasks have no layer in common."""

    def check(self, run: RunConfigLike) -> None:
        """Refuse a list of experts whose length is not the number of tasks with their own logit."""
        check_task_experts(self.task_experts, run)


class PLELevel(nn.Module):
    """One extraction network of PLE.

    Units are the tasks, then the shared experts, if any. The experts and the gate of a unit read the unit's slot. A task's
    gate sees the task's experts and the shared ones, the shared gate sees all.

    Args:
        in_features: width of a slot.
        config: the layers of each expert.
        counts: number of experts of every task.
        shared: number of shared experts S.
        last: True for the last level, which has no shared gate, since nothing would read it.
    """

    def __init__(
        self, in_features: int, config: StackConfig, counts: Sequence[int], shared: int, last: bool = True
    ) -> None:
        super().__init__()
        own, first = [], 0
        for count in counts:
            own.append(range(first, first + count))
            first += count
        total = first + shared
        sees: list[Sequence[int]] = [[*experts, *range(first, total)] for experts in own]
        if shared and not last:
            sees.append(range(total))
        self.counts = [*counts, shared] if shared else list(counts)
        self.experts = ParallelMLP(total, in_features, config)
        self.gates = Gates(in_features, sees, total)

    def forward(self, slots: Tensor) -> Tensor:
        """Map ``slots`` [B, units, D], or [B, D] read by all, to [B, T or units, d]."""
        experts = self.experts(for_experts(slots, self.counts))  # [B, E, d]
        gates = self.gates(slots if slots.dim() == 2 else slots[:, : self.gates.gates])  # [B, G, E]
        return torch.bmm(gates, experts)


@register("architecture", "ple", config=PLEConfig, order=60)
class PLE(Block):
    """L levels of :class:`PLELevel`: equations 1 to 7 of the paper, with a bias in the gates.

    The shared gate sees all experts, as in the paper (in some libraries it sees only the shared ones, so that nothing flows
    from tasks to them). Gates read the fused state of their own level, not the input.

    Parameters with m_t experts of task t, S shared ones and M = sum_t m_t:
    sum_l [(M + S) P(d_{l-1}; h_l) + (M + T S)(d_{l-1} + 1) + (M + S)(d_{l-1} + 1) if l < L and S > 0].
    """

    def __init__(self, config: PLEConfig, in_features: int, tasks: int) -> None:
        super().__init__()
        counts = counts_per_task(config.task_experts, tasks)
        stacks = config.stacks()
        self.levels = nn.Sequential()
        width = in_features
        for level, stack in enumerate(stacks, start=1):
            self.levels.append(PLELevel(width, stack, counts, config.shared_experts, last=level == len(stacks)))
            width = stack.layers[-1]
        self.out_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, T, d]."""
        out: Tensor = self.levels(features)
        return out
