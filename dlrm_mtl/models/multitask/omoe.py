"""One-gate mixture of experts (Ma et al., KDD 2018, doi 10.1145/3219819.3220007, section 4.1)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.models.blocks import Block, ParallelLinear, ParallelMLP, StackConfig


class OMoEConfig(StackConfig):
    """Experts that all tasks share, mixed by one softmax gate for all tasks; `layers` are the layers of each expert."""

    name: Literal["omoe"] = "omoe"
    experts: int = Field(default=4, gt=0)
    """Number of experts."""


@register("architecture", "omoe", config=OMoEConfig, order=30)
class OMoE(Block):
    """f = sum_e softmax(W x + b)_e expert_e(x), the same for every task: equation 3 of the paper, with a bias in the gate.

    Parameters with E experts of layers h: E P(D; h) + (D + 1) E, where P counts a stack with biases.
    """

    def __init__(self, config: OMoEConfig, in_features: int, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.experts = ParallelMLP(config.experts, in_features, config)
        self.gate = ParallelLinear(1, in_features, config.experts)
        self.out_features = self.experts.out_features

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, T, d]; the T slices are one tensor, expanded and not copied."""
        experts = self.experts(features)  # [B, E, d]
        gate = torch.softmax(self.gate(features), dim=-1)  # [B, 1, E]
        return torch.bmm(gate, experts).expand(-1, self.tasks, -1)
