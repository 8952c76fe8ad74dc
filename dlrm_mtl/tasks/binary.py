"""Losses of binary labels, on logits; one loss per row, so that masks and weights apply afterwards.

Shapes: any; logits and labels alike, labels in {0, 1}. With s = z (2 y - 1), sigmoid(s) is the probability of the observed
label.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dlrm_mtl.core.registry import register
from dlrm_mtl.tasks.loss import Kind, RowLossConfig


@register("loss", "binary_cross_entropy", order=10)
class BinaryCrossEntropyConfig(RowLossConfig):
    """Binary cross-entropy: -log sigmoid(s)."""

    labels: ClassVar[Kind] = "binary"
    takes_positive_weight: ClassVar[bool] = True
    name: Literal["binary_cross_entropy"] = "binary_cross_entropy"

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Losses [B, k], see :class:`~dlrm_mtl.tasks.loss.RowLossConfig`."""
        return binary_cross_entropy(logits, labels, positive_weight)


@register("loss", "focal", order=20)
class FocalConfig(RowLossConfig):
    """Focal loss (Lin et al., ICCV 2017): cross-entropy in which rows that are predicted well count less."""

    labels: ClassVar[Kind] = "binary"
    name: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0)
    """Exponent of a row's weight (1 - p)^gamma, with p the probability of the observed label; 0 is cross-entropy."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """Weight of positives; negatives have 1 - alpha. Default: both have weight 1."""
    detach_factor: bool = False
    """Treat (1 - p)^gamma as a constant in the gradient, as some implementations do. The gradient is then that of a
    reweighted cross-entropy, not of the focal loss."""

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Losses [B, k], see :class:`~dlrm_mtl.tasks.loss.RowLossConfig`."""
        return focal(logits, labels, self.gamma, self.alpha, self.detach_factor)


def binary_cross_entropy(logits: Tensor, labels: Tensor, positive_weight: Tensor | None = None) -> Tensor:
    """-log sigmoid(s), times ``positive_weight`` for positives, without overflow at any logit.

    Args:
        logits: any shape.
        labels: the same shape.
        positive_weight: of a shape that broadcasts, such as one number for each column; default: 1.
    """
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none", pos_weight=positive_weight)


def focal(
    logits: Tensor, labels: Tensor, gamma: float = 2.0, alpha: float | None = None, detach_factor: bool = False
) -> Tensor:
    """-(1 - p)^gamma log p with p = sigmoid(s), finite with finite gradients at any logit and for any gamma >= 0."""
    observed = logits * (2.0 * labels - 1.0)  # s
    factor = (gamma * F.logsigmoid(-observed)).exp()  # (1 - p)^gamma
    if detach_factor:
        factor = factor.detach()
    losses = factor * F.softplus(-observed)
    if alpha is not None:
        losses = losses * (alpha * labels + (1.0 - alpha) * (1.0 - labels))
    return losses
