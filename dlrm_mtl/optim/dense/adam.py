"""Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.optim.dense.base import DenseOptimizerConfig


@register("dense_optimizer", "adam", order=10)
class AdamConfig(DenseOptimizerConfig):
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

    def build(self, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer of ``parameters``."""
        return torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
