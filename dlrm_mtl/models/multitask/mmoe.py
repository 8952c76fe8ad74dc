"""Multi-gate mixture of experts (Ma et al., KDD 2018, doi 10.1145/3219819.3220007)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.models.blocks import Block, ParallelLinear, ParallelMLP, StackConfig


class MMoEConfig(StackConfig):
    """Experts that all tasks share, mixed by one softmax gate per task; `layers` are the layers of each expert."""

    name: Literal["mmoe"] = "mmoe"
    experts: int = Field(default=4, gt=0)
    """Number of experts."""


@register("architecture", "mmoe", config=MMoEConfig, order=40)
class MMoE(Block):
    """f_t = sum_e softmax(W_t x + b_t)_e expert_e(x): equations 5 to 7 of the paper, with a bias in the gates.

    Parameters with E experts of layers h and T tasks: E P(D; h) + T (D + 1) E, where P counts a stack with biases.
    """

    def __init__(self, config: MMoEConfig, in_features: int, tasks: int) -> None:
        super().__init__()
        self.experts = ParallelMLP(config.experts, in_features, config)
        self.gates = ParallelLinear(tasks, in_features, config.experts)
        self.out_features = self.experts.out_features

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, T, d]."""
        experts = self.experts(features)  # [B, E, d]
        gates = torch.softmax(self.gates(features), dim=-1)  # [B, T, E]
        return torch.bmm(gates, experts)
