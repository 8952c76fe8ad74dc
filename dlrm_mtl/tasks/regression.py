"""Losses of real labels, one loss per row. The "logit" of such a task is its prediction.

Shapes: any; predictions and labels alike.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dlrm_mtl.core.registry import register
from dlrm_mtl.tasks.loss import Kind, RowLossConfig


@register("loss", "mean_squared_error", order=30)
class MeanSquaredErrorConfig(RowLossConfig):
    """Squared error: (z - y)^2."""

    labels: ClassVar[Kind] = "real"
    name: Literal["mean_squared_error"] = "mean_squared_error"

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Losses [B, k], see :class:`~dlrm_mtl.tasks.loss.RowLossConfig`."""
        return squared_error(logits, labels)


@register("loss", "mean_absolute_error", order=40)
class MeanAbsoluteErrorConfig(RowLossConfig):
    """Absolute error: |z - y|."""

    labels: ClassVar[Kind] = "real"
    name: Literal["mean_absolute_error"] = "mean_absolute_error"

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Losses [B, k], see :class:`~dlrm_mtl.tasks.loss.RowLossConfig`."""
        return absolute_error(logits, labels)


@register("loss", "huber", order=50)
class HuberConfig(RowLossConfig):
    """Huber's loss: (z - y)^2 / 2 within delta of the label, delta (|z - y| - delta / 2) outside."""

    labels: ClassVar[Kind] = "real"
    name: Literal["huber"] = "huber"
    delta: float = Field(default=1.0, gt=0)
    """Distance from the label at which the loss turns from quadratic to linear, in units of the label."""

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Losses [B, k], see :class:`~dlrm_mtl.tasks.loss.RowLossConfig`."""
        return huber(logits, labels, self.delta)


def squared_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """(z - y)^2."""
    return (predictions - labels).square()


def absolute_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """|z - y|; the gradient at z = y is 0."""
    return (predictions - labels).abs()


def huber(predictions: Tensor, labels: Tensor, delta: float = 1.0) -> Tensor:
    """(z - y)^2 / 2 where |z - y| <= delta, delta (|z - y| - delta / 2) elsewhere."""
    return F.huber_loss(predictions, labels, reduction="none", delta=delta)
