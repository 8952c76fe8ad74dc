"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.optim.dense.base import DenseOptimizerConfig


@register("dense_optimizer", "sgd", order=40)
class DenseSGDConfig(DenseOptimizerConfig):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    learning_rate: LearningRate = 0.1
    """Step size."""

    def build(self, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer of ``parameters``."""
        return torch.optim.SGD(parameters, lr=self.learning_rate)
