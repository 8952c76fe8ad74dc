"""Stochastic gradient descent for tables."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.embeddings.kernels.layout import Update
from dlrm_mtl.embeddings.rules.base import TableRule, TouchedRows


@register("table_optimizer", "sgd", order=40)
class SGD(TableRule):
    """Stochastic gradient descent: w <- w - learning_rate g."""

    name: Literal["sgd"] = "sgd"
    learning_rate: LearningRate = 0.1
    """Step size."""

    def update(self, touched: TouchedRows, lr: float, step: int, factors: Tensor) -> None:
        """Apply one step."""
        touched.weights = touched.weights - lr * touched.gradients

    def native(self) -> Update:
        """Return the update for the native kernels."""
        return Update(kind="sgd")
