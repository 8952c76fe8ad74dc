"""Adam for tables, with the second moment per row."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.embeddings.kernels.layout import ElementUpdate
from dlrm_mtl.embeddings.rules.base import StateSpec, TableRule, TouchedRows

Decay = Annotated[float, Field(ge=0, lt=1)]


@register("table_optimizer", "rowwise_adam", order=30)
class RowWiseAdam(TableRule):
    """Adam with the second moment per row, of the rows that a batch touches.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) mean(g^2);
    w <- w - learning_rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), with t the number of steps: FBGEMM's
    PARTIAL_ROWWISE_ADAM. The first moment takes as much memory as the table.
    """

    name: Literal["rowwise_adam"] = "rowwise_adam"
    learning_rate: LearningRate = 1e-3
    """Step size."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """Second moment per row, under its name in checkpoints, and first moment per element."""
        return (StateSpec("accumulator", "row"), StateSpec("first_moment", "element"))

    def update(self, touched: TouchedRows, lr: float, step: int, factors: Tensor) -> None:
        """Apply one step."""
        first, second = self.betas
        moments = first * touched.states["first_moment"] + (1 - first) * touched.gradients
        squares = second * touched.states["accumulator"] + (1 - second) * touched.mean_squares
        root = (squares / (1 - second**step)).sqrt() + self.eps
        touched.weights = touched.weights - lr * (moments / (1 - first**step) / root.unsqueeze(1))
        touched.states.update(first_moment=moments, accumulator=squares)

    def native_elements(self) -> ElementUpdate:
        """Return the update for the native kernels of the CPU."""
        return ElementUpdate(kind="rowwise_adam", betas=self.betas, eps=self.eps)
