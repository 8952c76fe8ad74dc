"""What the configurations of all losses have in common.

A new loss is one new file here, or in a plugin: a :class:`RowLossConfig`, registered as ``loss``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from torch import Tensor

from dlrm_mtl.core.parts import Part
from dlrm_mtl.core.schema import PartConfig

Kind = Literal["binary", "real", "ranking"]
"""What a loss's labels are: it decides on metrics and on what a prediction is.

`ranking`: a label above 0 says that the row's user and item belong together, and other rows do not count; the loss compares
the item with others that the model draws, and the prediction is a score that orders a user's items."""


class RowLossConfig(PartConfig):
    """A loss of single rows, so that masks and weights apply afterwards."""

    labels: ClassVar[Kind]
    """What its labels are."""
    takes_positive_weight: ClassVar[bool] = False
    """Whether positives can weigh more than negatives in it."""

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """The losses [B, k] of ``logits`` [B, k].

        Args:
            logits: in training, those of a ranking loss are margins between the row's item and those drawn, see
                :func:`~dlrm_mtl.tasks.ranking.margin`.
            labels: [B, k], in {0, 1} for a binary loss, 1 for a ranking loss.
            positive_weight: [k], for a loss that takes it; None where all are 1.
        """
        raise NotImplementedError


class RankingLossConfig(RowLossConfig):
    """A loss that compares an item with others, drawn by the model; ``negatives`` is a field or a property."""

    labels: ClassVar[Kind] = "ranking"

    if TYPE_CHECKING:

        @property
        def negatives(self) -> int:
            """Items that are drawn for each positive."""
            ...


LossConfig = Annotated[RowLossConfig, Part("loss")]
"""The name of a loss, or a mapping with its options."""
