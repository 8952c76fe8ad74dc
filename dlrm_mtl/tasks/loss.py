"""Base of the configurations of all losses.

A new loss is one new file here, or in a plugin: a :class:`RowLossConfig`, registered as ``loss``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from torch import Tensor

from dlrm_mtl.core.parts import Part
from dlrm_mtl.core.schema import PartConfig

Kind = Literal["binary", "real", "ranking"]
"""Kind of a loss's labels, which determines metrics and the meaning of a prediction.

`ranking`: a label above 0 means that the row's user and item belong together, and other rows are ignored. The loss compares
the item with others that the model draws, and the prediction is a score that orders a user's items.
"""


class RowLossConfig(PartConfig):
    """A loss of single rows, so that masks and weights apply afterwards."""

    labels: ClassVar[Kind]
    """Kind of its labels."""
    takes_positive_weight: ClassVar[bool] = False
    """True for a loss in which positives can weigh more than negatives."""

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Losses [B, k] of ``logits`` [B, k].

        Args:
            logits: logits; for a ranking loss in training, margins between the row's item and the drawn ones, see
                :func:`~dlrm_mtl.tasks.ranking.margin`.
            labels: [B, k], in {0, 1} for a binary loss, 1 for a ranking loss.
            positive_weight: [k], for a loss that takes it; None if all are 1.
        """
        raise NotImplementedError


class RankingLossConfig(RowLossConfig):
    """A loss that compares an item with others, drawn by the model; ``negatives`` is a field or a property."""

    labels: ClassVar[Kind] = "ranking"

    if TYPE_CHECKING:

        @property
        def negatives(self) -> int:
            """Number of items drawn for each positive."""
            ...


LossConfig = Annotated[RowLossConfig, Part("loss")]
"""Name of a loss, or a mapping with its options."""
