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
    """Adam with both moments per element (Kingma and Ba, ICLR 2015); the state takes twice the memory of the table.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - learning_rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps),
    with t the number of steps. With ``rows: touched`` a row without a gradient keeps its weights and moments (lazy Adam, as
    torch.optim.SparseAdam); with ``rows: all`` its moments decay and go on moving it, as in torch.optim.Adam.
    """

    name: Literal["adam"] = "adam"
    learning_rate: LearningRate = 1e-3
    """Step size."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    rows: Literal["touched", "all"] = "touched"
    """Rows that a step updates: those that the batch touches, or all. `all` is Adam as defined, but every step passes over
    the whole table: for tables of up to some 100,000 rows."""

    @property
    def moves_all_rows(self) -> bool:
        """True with ``rows: all``."""
        return self.rows == "all"

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
