"""Metrics of a binary task, exact over all rows.

Every metric takes logits, labels in {0, 1} and weights >= 0, each [N] float64; rows of weight 0 are ignored. A metric
that is not defined (no rows, or one class only) is nan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import register
from dlrm_mtl.metrics.forms import OverScores, RowSums, ScoreRange, mean

Array = NDArray[np.float64]


def _auc_part(scores: ScoreRange) -> float:
    """Pairs of a positive in the range and a negative below it, ties counting half, as a share of all pairs."""
    _, below = scores.below
    pairs = (scores.positive * (below + 0.5 * scores.negative)).sum()
    return float(pairs / (scores.positive_total * scores.negative_total))


_auc = OverScores(_auc_part)


@register("metric", "auc", kinds={"binary": 10, "ranking": 100}, heading="AUC", over=_auc)
def auc(logits: Array, labels: Array, weights: Array) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counting half.

    Raises:
        ValueError: a logit is nan.
    """
    return _auc(logits, labels, weights)


def _losses(logits: Array, labels: Array, weights: Array) -> Array:
    return np.stack([weights * (np.logaddexp(0.0, logits) - labels * logits), weights])


_log_loss = RowSums(_losses, mean)


@register("metric", "log_loss", kinds={"binary": 20}, heading="log loss", lower_is_better=True, over=_log_loss)
def log_loss(logits: Array, labels: Array, weights: Array) -> float:
    """Mean binary cross-entropy in nats."""
    return _log_loss(logits, labels, weights)


def _losses_and_positives(logits: Array, labels: Array, weights: Array) -> Array:
    return np.concatenate([_losses(logits, labels, weights), [weights * labels]])


def _relative_to_the_rate(sums: Array) -> float:
    loss, weight, positive = sums
    if not 0 < positive < weight:
        return float("nan")
    rate = positive / weight
    return float(loss / weight / -(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate)))


_normalized_entropy = RowSums(_losses_and_positives, _relative_to_the_rate)


@register(
    "metric",
    "normalized_entropy",
    kinds={"binary": 30},
    heading="norm. entropy",
    lower_is_better=True,
    over=_normalized_entropy,
)
def normalized_entropy(logits: Array, labels: Array, weights: Array) -> float:
    """Log loss divided by that of always predicting the mean label (He et al., ADKDD 2014); below 1 is better."""
    return _normalized_entropy(logits, labels, weights)


def _predicted_and_observed(logits: Array, labels: Array, weights: Array) -> Array:
    return np.stack([weights * np.exp(-np.logaddexp(0.0, -logits)), weights * labels])


_calibration = RowSums(_predicted_and_observed, mean)


@register("metric", "calibration", kinds={"binary": 40}, heading="calibration", form="{:.3f}", over=_calibration)
def calibration(logits: Array, labels: Array, weights: Array) -> float:
    """Predicted positives divided by observed ones: 1 is perfect, above 1 predicts too many."""
    return _calibration(logits, labels, weights)


def _observed(logits: Array, labels: Array, weights: Array) -> Array:
    return (weights * labels)[None]


_positives = RowSums(_observed, lambda sums: float(sums[0]))


@register("metric", "positives", kinds={"binary": 50}, heading="positives", form="{:,.0f}", over=_positives)
def positives(logits: Array, labels: Array, weights: Array) -> float:
    """Sum of the weights of positive rows."""
    return _positives(logits, labels, weights)
