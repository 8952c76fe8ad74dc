"""Multi-level MMoE: stacked mixtures of experts, as the PLE and AdaTT papers define their baseline."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dlrm_mtl.core.registry import register
from dlrm_mtl.models.blocks import Block, Gates, LevelsConfig, ParallelMLP


class MultiLevelMMoEConfig(LevelsConfig):
    """Shared experts on several levels; every gate of every level reads the input itself."""

    name: Literal["multi_level_mmoe"] = "multi_level_mmoe"
    experts: int = Field(default=4, gt=0)
    """Number of experts on each level."""


@register("architecture", "multi_level_mmoe", config=MultiLevelMMoEConfig, order=50)
class MultiLevelMMoE(Block):
    """Experts on L levels (Tang et al., RecSys 2020, section 4.3; Li et al., KDD 2023, section 4.1.3).

    Level l has E experts. Expert e reads slot e of the previous level's output; on the first level all read x. Gates mix
    the experts of a level by a softmax: E gates, one for each expert of the next level, and on the last level one per task.
    On every level, gates read x. One level is MMoE.

    Parameters: sum_l [E P(d_{l-1}; h_l) + (E if l < L else T) E (D + 1)], where P counts a stack with biases.
    """

    def __init__(self, config: MultiLevelMMoEConfig, in_features: int, tasks: int) -> None:
        super().__init__()
        stacks = config.stacks()
        self.experts, self.gates = nn.ModuleList(), nn.ModuleList()
        width = in_features
        for level, stack in enumerate(stacks, start=1):
            self.experts.append(ParallelMLP(config.experts, width, stack))
            gates = tasks if level == len(stacks) else config.experts
            self.gates.append(Gates(in_features, [range(config.experts)] * gates, config.experts))
            width = stack.layers[-1]
        self.out_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, T, d]."""
        slots = features
        for experts, gates in zip(self.experts, self.gates, strict=True):
            slots = torch.bmm(gates(features), experts(slots))  # [B, G, E] [B, E, d]
        return slots
