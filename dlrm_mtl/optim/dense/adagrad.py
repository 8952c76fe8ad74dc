"""AdaGrad (Duchi, Hazan & Singer, JMLR 2011)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.optim.dense.base import DenseOptimizerConfig


@register("dense_optimizer", "adagrad", order=20)
class AdagradConfig(DenseOptimizerConfig):
    """AdaGrad with one accumulator per parameter."""

    name: Literal["adagrad"] = "adagrad"
    learning_rate: LearningRate = 0.01
    """Step size."""
    initial_accumulator_value: float = Field(default=0.1, ge=0)
    """Initial value of the accumulators."""
    eps: float = Field(default=1e-10, ge=0)
    """Added to the root of the accumulator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty, added to the gradient."""

    def build(self, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer of ``parameters``."""
        return torch.optim.Adagrad(
            parameters,
            lr=self.learning_rate,
            initial_accumulator_value=self.initial_accumulator_value,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
