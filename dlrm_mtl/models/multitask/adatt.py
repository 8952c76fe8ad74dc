"""AdaTT: adaptive task-to-task fusion (Li et al., KDD 2023, doi 10.1145/3580305.3599769)."""

from __future__ import annotations

import math
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


class AdaTTSpConfig(LevelsConfig):
    """Experts of each task, which the gates of all tasks see, and a residual of each task's own experts."""

    name: Literal["adatt_sp"] = "adatt_sp"
    task_experts: ExpertCounts = 1
    """Number of experts of each task on every level: one number, or one per task."""
    residual: bool = True
    """Add each task's own experts, linearly weighted, to the mix of its gate; false uses the gate alone (an ablation)."""

    def check(self, run: RunConfigLike) -> None:
        """Refuse a list of experts whose length is not the number of tasks with their own logit."""
        check_task_experts(self.task_experts, run)


class AdaTTConfig(AdaTTSpConfig):
    """AdaTT with shared experts: a unit of its own beside the tasks' units. Without shared experts it is AdaTT-sp."""

    name: Literal["adatt"] = "adatt"  # type: ignore[assignment]
    shared_experts: int = Field(default=1, ge=0)
    """Number of experts that belong to no task, on every level; with 0 this is AdaTT-sp."""


class AdaTTLevel(nn.Module):
    """One fusion level: output = (softmax gates + native weights) experts.

    Each unit's experts and gate read the unit's slot. Every gate sees all experts of all units. A unit has one native
    weight for each of its own experts. Native weights are learned, do not depend on the input, are not normalised and start
    from U(-1/sqrt(m), 1/sqrt(m)); if every unit has one expert they are the constant 1.

    Args:
        in_features: width of a slot.
        config: the layers of each expert.
        counts: number of experts m of every unit.
        outputs: number of units G that are fused, the first ones; on the last level the shared unit is not.
        residual: True for native weights.
    """

    native_places: Tensor

    def __init__(
        self, in_features: int, config: StackConfig, counts: Sequence[int], outputs: int, residual: bool = True
    ) -> None:
        super().__init__()
        self.counts = list(counts)
        total = sum(counts)
        self.experts = ParallelMLP(total, in_features, config)
        self.gates = Gates(in_features, [range(total)] * outputs, total)
        self.native: nn.Parameter | None = None
        starts = [sum(counts[:unit]) for unit in range(outputs)]
        places = [u * total + starts[u] + i for u in range(outputs) for i in range(counts[u])]
        self.register_buffer("native_places", torch.tensor(places), persistent=False)
        self.residual = residual
        if residual and any(count != 1 for count in counts):
            weights = [torch.empty(n).uniform_(-1.0, 1.0) / math.sqrt(n) for n in counts[:outputs]]
            self.native = nn.Parameter(torch.cat(weights))

    def native_weights(self) -> Tensor:
        """Native weights v, padded with zeros for other units' experts: [G, E]."""
        cells = self.gates.bias.new_zeros(self.gates.gates * self.gates.experts)
        values = cells.new_ones(len(self.native_places)) if self.native is None else self.native
        return cells.index_copy(0, self.native_places, values).view(self.gates.gates, self.gates.experts)

    def forward(self, slots: Tensor) -> Tensor:
        """Map ``slots`` [B, units, D], or [B, D] read by all, to [B, G, d]."""
        experts = self.experts(for_experts(slots, self.counts))  # [B, E, d]
        mixing = self.gates(slots if slots.dim() == 2 else slots[:, : self.gates.gates])  # [B, G, E]
        if self.residual:
            mixing = mixing + self.native_weights()
        return torch.bmm(mixing, experts)


@register("architecture", "adatt", config=AdaTTConfig, order=90)
@register("architecture", "adatt_sp", config=AdaTTSpConfig, order=80)
class AdaTT(Block):
    """L levels of :class:`AdaTTLevel`: equations 1 to 7 of the paper, with a bias in the gates.

    Units are the tasks and, with shared experts, one shared unit, which is fused on all levels but the last. (The published
    code fails without shared experts, and with one level keeps a parameter of size 0; neither is so here. As there, a unit
    of a single expert has a learned native weight as soon as another unit has more than one expert.)

    Parameters with m_t experts of task t, S shared ones, M = sum_t m_t, E = M + S, and G_l = T + 1 where l < L and S > 0,
    else T: sum_l [E P(d_{l-1}; h_l) + G_l E (d_{l-1} + 1)], and with the residual, unless every unit has one expert,
    L M + (L - 1) S native weights.
    """

    def __init__(self, config: AdaTTSpConfig, in_features: int, tasks: int) -> None:
        super().__init__()
        counts = counts_per_task(config.task_experts, tasks)
        shared = config.shared_experts if isinstance(config, AdaTTConfig) else 0
        units = [*counts, shared] if shared else counts
        stacks = config.stacks()
        self.levels = nn.Sequential()
        width = in_features
        for level, stack in enumerate(stacks, start=1):
            outputs = tasks if level == len(stacks) else len(units)
            self.levels.append(AdaTTLevel(width, stack, units, outputs, config.residual))
            width = stack.layers[-1]
        self.out_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, T, d]."""
        out: Tensor = self.levels(features)
        return out
