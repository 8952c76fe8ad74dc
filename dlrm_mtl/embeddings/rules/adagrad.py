"""AdaGrad for tables, with one accumulator per element."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.embeddings.kernels.layout import ElementUpdate
from dlrm_mtl.embeddings.rules.base import StateSpec, TableRule, TouchedRows


@register("table_optimizer", "adagrad", order=50)
class TableAdagrad(TableRule):
    """AdaGrad with one accumulator per element (Duchi, Hazan and Singer, JMLR 2011).

    a <- a + g^2; w <- w - learning_rate g / (sqrt(a) + eps), as torch.optim.Adagrad. The state takes as much memory as the
    table.
    """

    name: Literal["adagrad"] = "adagrad"
    learning_rate: LearningRate = 0.02
    """Step size."""
    initial_accumulator_value: float = Field(default=0.0, ge=0)
    """Initial value of the accumulators."""
    eps: float = Field(default=1e-10, gt=0)
    """Added to the root of the accumulator."""

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """One accumulator per element."""
        return (StateSpec("accumulator", "element", self.initial_accumulator_value),)

    def update(self, touched: TouchedRows, lr: float, step: int, factors: Tensor) -> None:
        """Apply one step."""
        accumulators = touched.states["accumulator"] + touched.gradients.square()
        touched.weights = touched.weights - lr * (touched.gradients / (accumulators.sqrt() + self.eps))
        touched.states["accumulator"] = accumulators

    def native_elements(self) -> ElementUpdate:
        """Return the update for the native kernels of the CPU."""
        return ElementUpdate(kind="adagrad", eps=self.eps)
