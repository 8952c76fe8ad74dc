"""Losses that compare the score of an observed item with those of other items, its negatives.

Each function gives one loss per comparison; take the weighted mean over the global batch. A configuration may name those
with a ``...Config`` for models that draw negatives in training.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dlrm_mtl.core.registry import register
from dlrm_mtl.tasks.loss import RankingLossConfig


@register("loss", "bpr", order=60)
class BPRConfig(RankingLossConfig):
    """Bayesian personalised ranking: -log sigmoid(p - n), with one negative for each positive."""

    name: Literal["bpr"] = "bpr"

    @property
    def negatives(self) -> int:
        """Number of negatives drawn for each positive."""
        return 1

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Losses [B, k], see :class:`~dlrm_mtl.tasks.loss.RowLossConfig`."""
        return bpr(logits, torch.zeros_like(logits))


@register("loss", "bpr_probability", order=70)
class BPRProbabilityConfig(RankingLossConfig):
    """The smooth count of wrong orders: 1 - sigmoid(p - n), with one negative for each positive."""

    name: Literal["bpr_probability"] = "bpr_probability"

    @property
    def negatives(self) -> int:
        """Number of negatives drawn for each positive."""
        return 1

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Losses [B, k], see :class:`~dlrm_mtl.tasks.loss.RowLossConfig`."""
        return bpr_probability(logits, torch.zeros_like(logits))


@register("loss", "softmax_cross_entropy", order=80)
class SoftmaxCrossEntropyConfig(RankingLossConfig):
    """-log of the positive's share in the softmax over itself and its negatives."""

    name: Literal["softmax_cross_entropy"] = "softmax_cross_entropy"
    negatives: int = Field(default=4, gt=0)
    """Number of negatives drawn for each positive."""

    def per_row(self, logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Losses [B, k], see :class:`~dlrm_mtl.tasks.loss.RowLossConfig`."""
        return bpr(logits, torch.zeros_like(logits))


def margin(positive: Tensor, negatives: Tensor) -> Tensor:
    """Margin of the positive over its negatives: p - logsumexp(n), which is p - n for one negative.

    -log sigmoid of it is BPR for one negative, and the softmax cross-entropy for any number.

    Args:
        positive: [B], scores of observed items.
        negatives: [B, N], scores of the negatives.

    Returns:
        [B].
    """
    return positive - torch.logsumexp(negatives, dim=1)


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): -log sigmoid(p - n).

    Args:
        positive: [B], scores of observed items.
        negative: [B], or [B, N] with N negatives for each.

    Returns:
        As ``negative``.
    """
    return F.softplus(-_margin(positive, negative))


def bpr_probability(positive: Tensor, negative: Tensor) -> Tensor:
    """The smooth count of wrong orders: 1 - sigmoid(p - n), in [0, 1].

    Unlike that of :func:`bpr`, its gradient vanishes for very wrong pairs as well as for right ones.

    Args:
        positive: [B], scores of observed items.
        negative: [B], or [B, N] with N negatives for each.

    Returns:
        As ``negative``.
    """
    return torch.sigmoid(-_margin(positive, negative))


def softmax_cross_entropy(positive: Tensor, negatives: Tensor, log_sampling: Tensor | None = None) -> Tensor:
    """-log of the positive's share in the softmax over itself and its negatives.

    Args:
        positive: [B], scores of observed items.
        negatives: [B, N], scores of the negatives; -inf excludes one.
        log_sampling: [B, 1 + N], logarithms of the probabilities with which the items were drawn (the positive first),
            subtracted from the scores, so that frequently drawn items are not penalised (Yi et al., RecSys 2019).

    Returns:
        [B].
    """
    scores = torch.cat([positive.unsqueeze(1), negatives], dim=1)  # [B, 1 + N]
    if log_sampling is not None:
        scores = scores - log_sampling
    return torch.logsumexp(scores, dim=1) - scores[:, 0]


def in_batch_softmax(scores: Tensor, items: Tensor | None = None, log_sampling: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy in which the other rows' items are the negatives.

    The candidates are the columns of the matrix. On several processes, gather the items first, or the loss depends on the
    number of processes.

    Args:
        scores: [B, B], scores of row i's context with row j's item; the diagonal holds the observed pairs.
        items: [B] ids; other rows with the same item are not negatives.
        log_sampling: [B], logarithm of each item's fraction of the rows.

    Returns:
        [B].
    """
    if log_sampling is not None:
        scores = scores - log_sampling.unsqueeze(0)
    if items is not None:
        same = items.unsqueeze(0) == items.unsqueeze(1)
        others = same & ~torch.eye(len(items), dtype=torch.bool, device=items.device)
        scores = scores.masked_fill(others, float("-inf"))
    return torch.logsumexp(scores, dim=1) - scores.diagonal()


def _margin(positive: Tensor, negative: Tensor) -> Tensor:
    return (positive if positive.dim() == negative.dim() else positive.unsqueeze(-1)) - negative
