"""Base of the update rules for embedding tables: options, state, and the update of the touched rows.

A rule is one file in this folder: a configuration class, registered as a ``table_optimizer``, with the layout of its state
and a reference function. If native kernels implement the rule, it gives them an ``Update`` (see the kernels'
``layout.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dlrm_mtl.core.schema import LearningRate, PartConfig
from dlrm_mtl.embeddings.kernels.layout import ElementUpdate, Update

TINY = 2.0**-126
"""Smallest normal float32. Without it under the root, an empty accumulator and a gradient whose square underflows would
divide by 0."""


@dataclass(frozen=True)
class StateSpec:
    """One float32 number that a rule keeps for each row of a table, or for each element."""

    name: str
    per: Literal["row", "element"]
    initial: float = 0.0


@dataclass
class TouchedRows:
    """Rows of tables that the global batch touches, on one process: U rows with D local columns."""

    weights: Tensor
    """[U, D] float32."""
    gradients: Tensor
    """[U, D] float32, summed over the global batch."""
    mean_squares: Tensor
    """[U] float32: mean of the squares of each row's gradient over the whole row, on all processes."""
    states: dict[str, Tensor] = field(default_factory=dict)
    """State by name: [U] for state per row, [U, D] for state per element."""


class TableRule(PartConfig):
    """An update rule for embedding tables; its instances are configurations.

    The update must not depend on the sharding: it may use the row's own numbers, ``mean_squares``, and the number of the
    step.
    """

    learning_rate: LearningRate
    """Step size."""

    clips: ClassVar[bool] = False
    """True for a rule that overrides :meth:`largest_factors`."""

    @property
    def moves_all_rows(self) -> bool:
        """True if rows that the batch does not touch change as well; they are updated with a gradient of 0."""
        return False

    @property
    def states(self) -> Sequence[StateSpec]:
        """State of the rule, with the names used in checkpoints."""
        return ()

    def update(self, touched: TouchedRows, lr: float, step: int, factors: Tensor) -> None:
        """Replace the weights and states in ``touched`` by their values after the step.

        Args:
            touched: the rows.
            lr: learning rate of this step.
            step: number of this step among the applied ones, from 1.
            factors: [U] clipping factor of each row's table, in [0, 1].
        """
        raise NotImplementedError

    def largest_factors(self, touched: TouchedRows, lr: float) -> Tensor:
        """Return the largest factor in [0, 1] that each row's local columns allow, [U]; for rules that clip."""
        return torch.ones_like(touched.mean_squares)

    def native(self) -> Update | None:
        """Return the row-wise update for the native kernels, or None if :meth:`update` is used."""
        return None

    def native_elements(self) -> ElementUpdate | None:
        """Return the update with state per element for the native kernels of the CPU, or None if there is none.

        Elsewhere, and without native kernels, :meth:`update` is used.
        """
        return None
