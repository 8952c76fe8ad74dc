"""FTRL-Proximal for tables."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.embeddings.kernels.layout import ElementUpdate
from dlrm_mtl.embeddings.rules.base import StateSpec, TableRule, TouchedRows


@register("table_optimizer", "ftrl", order=70)
class FTRL(TableRule):
    """FTRL-Proximal, with state per element: weights that are rarely needed become exactly 0.

    McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013, Algorithm 1: for each coordinate s = (sqrt(n
    + g^2) - sqrt(n)) / alpha; z <- z + g - s w; n <- n + g^2; w <- 0 where |z| <= l1, else -(z - sign(z) l1) / ((beta +
    sqrt(n)) / alpha + l2), with alpha the learning rate. The first step of a row replaces its initial weights. The state
    takes twice the memory of the table.
    """

    name: Literal["ftrl"] = "ftrl"
    learning_rate: LearningRate = 0.1
    """Learning rate, alpha in the paper."""
    beta: float = Field(default=1.0, ge=0)
    """Number added to the root of the squares; damps the first steps."""
    l1: float = Field(default=0.0, ge=0)
    """L1 regularisation: a weight is 0 if its |z| is at most this."""
    l2: float = Field(default=0.0, ge=0)
    """L2 regularisation: pulls weights towards 0."""

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """The paper's z and n, per element."""
        return (StateSpec("linear", "element"), StateSpec("squares", "element"))

    def update(self, touched: TouchedRows, lr: float, step: int, factors: Tensor) -> None:
        """Apply one step."""
        gradients, squares = touched.gradients, touched.states["squares"]
        after = squares + gradients.square()
        linear = touched.states["linear"] + gradients - (after.sqrt() - squares.sqrt()) / lr * touched.weights
        scale = (self.beta + after.sqrt()) / lr + self.l2
        weights = -(linear - linear.sign() * self.l1) / scale
        weights = torch.where(linear.abs() <= self.l1, 0.0, weights)
        # Columns without a gradient stay unchanged, even if others of the row have one.
        touched.weights = torch.where(gradients == 0, touched.weights, weights)
        touched.states.update(linear=linear, squares=after)

    def native_elements(self) -> ElementUpdate:
        """Return the update for the native kernels of the CPU."""
        return ElementUpdate(kind="ftrl", beta=self.beta, l1=self.l1, l2=self.l2)
