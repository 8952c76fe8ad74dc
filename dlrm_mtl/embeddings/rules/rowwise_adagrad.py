"""AdaGrad for tables, with one accumulator per row."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.embeddings.kernels.layout import Update
from dlrm_mtl.embeddings.rules.base import TINY, StateSpec, TableRule, TouchedRows


@register("table_optimizer", "rowwise_adagrad", order=20)
class RowWiseAdagrad(TableRule):
    """AdaGrad with one accumulator per row: the mean of the squares of the whole row's gradient.

    a <- a + mean(g^2); w <- w - learning_rate g / (sqrt(a) + eps), as in FBGEMM. Unlike there, the mean is over the whole
    row even if a table's columns are spread over processes.
    """

    name: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    learning_rate: LearningRate = 0.02
    """Step size."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the accumulator."""
    initial_accumulator_value: float = Field(default=0.0, ge=0)
    """Initial value of the accumulators."""

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """One accumulator per row."""
        return (StateSpec("accumulator", "row", self.initial_accumulator_value),)

    def update(self, touched: TouchedRows, lr: float, step: int, factors: Tensor) -> None:
        """Apply one step."""
        accumulators = touched.states["accumulator"] + touched.mean_squares
        root = accumulators.sqrt() + max(self.eps, math.sqrt(TINY))
        touched.weights = torch.where(
            touched.gradients == 0, touched.weights, touched.weights - lr * (touched.gradients / root.unsqueeze(1))
        )
        touched.states["accumulator"] = accumulators

    def native(self) -> Update:
        """Return the update for the native kernels."""
        return Update(kind="adagrad", eps=max(self.eps, math.sqrt(TINY)), eps_inside=False)
