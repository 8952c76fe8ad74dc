"""Adam for tables, with both moments per element."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.embeddings.kernels.layout import ElementUpdate
from dlrm_mtl.embeddings.rules.base import StateSpec, TableRule, TouchedRows
from dlrm_mtl.embeddings.rules.rowwise_adam import Decay


@register("table_optimizer", "adam", order=60)
class TableAdam(TableRule):
    """Adam with both moments per element, of the rows that a batch touches (lazy Adam).

    Kingma and Ba, ICLR 2015. Rows without a gradient keep their weights and moments: if every row is touched in every step,
    this is dense Adam. The state takes twice the memory of the table.
    """

    name: Literal["adam"] = "adam"
    learning_rate: LearningRate = 1e-3
    """Step size."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """Both moments per element."""
        return (StateSpec("first_moment", "element"), StateSpec("second_moment", "element"))

    def update(self, touched: TouchedRows, lr: float, step: int, factors: Tensor) -> None:
        """Apply one step."""
        first, second = self.betas
        moments = first * touched.states["first_moment"] + (1 - first) * touched.gradients
        squares = second * touched.states["second_moment"] + (1 - second) * touched.gradients.square()
        root = (squares / (1 - second**step)).sqrt() + self.eps
        touched.weights = touched.weights - lr * (moments / (1 - first**step) / root)
        touched.states.update(first_moment=moments, second_moment=squares)

    def native_elements(self) -> ElementUpdate:
        """Return the update for the native kernels of the CPU."""
        return ElementUpdate(kind="adam", betas=self.betas, eps=self.eps)
