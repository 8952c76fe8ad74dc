"""Row-wise AdaGrad with Clippy, for tables."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.clippy_limits import ClippyLimits
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.embeddings.kernels.layout import Update
from dlrm_mtl.embeddings.rules.base import TINY, StateSpec, TableRule, TouchedRows


@register("table_optimizer", "clippy_rowwise_adagrad", order=10)
class ClippyRowWiseAdagrad(ClippyLimits, TableRule):
    """Row-wise AdaGrad that limits how far any coordinate moves in a step: Clippy, for tables.

    Algorithm 1 of arXiv 2302.09178 with one accumulator per row: a <- a + mean(g^2);  r = g / sqrt(a + eps);
    sigma = min(1, min_i (lambda_rel |w_i| + lambda_abs) / (learning_rate |r_i|));  w <- w - learning_rate sigma r.
    """

    name: Literal["clippy_rowwise_adagrad"] = "clippy_rowwise_adagrad"
    learning_rate: LearningRate = 0.1
    """Step size."""
    eps: float = Field(default=0.0, ge=0)
    """Added to the accumulator under the root."""
    scope: Literal["table", "row"] = "table"
    """Scope of a factor: all rows of a table that the global batch touches, or a single row."""

    clips: ClassVar[bool] = True

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """One accumulator per row."""
        return (StateSpec("accumulator", "row", self.initial_accumulator_value),)

    def update(self, touched: TouchedRows, lr: float, step: int, factors: Tensor) -> None:
        """Apply one step; with the scope ``row``, ``factors`` are those of the rows."""
        touched.weights = touched.weights - (lr * factors).unsqueeze(1) * self._direction(touched)
        touched.states["accumulator"] = touched.states["accumulator"] + touched.mean_squares

    def largest_factors(self, touched: TouchedRows, lr: float) -> Tensor:
        """Return each row's sigma, [U]."""
        move = lr * self._direction(touched).abs()
        allowed = self.lambda_rel * touched.weights.abs() + self.lambda_abs
        return torch.where(move > allowed, allowed / move, 1.0).amin(dim=1)

    def native(self) -> Update:
        """Return the update for the native kernels."""
        return Update(
            kind="clippy",
            lambda_rel=self.lambda_rel,
            lambda_abs=self.lambda_abs,
            eps=max(self.eps, TINY),
            delayed=self.accumulator == "delayed",
            per_row=self.scope == "row",
        )

    def _direction(self, touched: TouchedRows) -> Tensor:
        """r, [U, D]; 0 where the gradient is 0."""
        squares = touched.states["accumulator"]
        if self.accumulator == "standard":
            squares = squares + touched.mean_squares
        root = (squares + max(self.eps, TINY)).sqrt().unsqueeze(1)
        return torch.where(touched.gradients == 0, 0.0, touched.gradients / root)
