"""Metrics of a binary task, exact over all rows.

Every function takes logits, labels in {0, 1} and weights >= 0, each [N] float64; rows of weight 0 are ignored. A metric
that is not defined (no rows, or one class only) is nan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import register

Array = NDArray[np.float64]


@register("metric", "auc", kinds={"binary": 10, "ranking": 100}, heading="AUC")
def auc(logits: Array, labels: Array, weights: Array) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counting half."""
    order = np.argsort(logits, kind="stable")
    scores = logits[order]
    positive = (weights * labels)[order]
    negative = (weights * (1.0 - labels))[order]
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.empty(0, dtype=np.int64)
    positive_up_to, negative_up_to = np.cumsum(positive)[ends], np.cumsum(negative)[ends]
    total = positive.sum() * negative.sum()
    if total == 0:
        return float("nan")
    positive_in_tie = np.diff(positive_up_to, prepend=0.0)
    negative_in_tie = np.diff(negative_up_to, prepend=0.0)
    below = negative_up_to - negative_in_tie
    return float((positive_in_tie * (below + 0.5 * negative_in_tie)).sum() / total)


@register("metric", "log_loss", kinds={"binary": 20}, heading="log loss", lower_is_better=True)
def log_loss(logits: Array, labels: Array, weights: Array) -> float:
    """Mean binary cross-entropy in nats."""
    if weights.sum() == 0:
        return float("nan")
    losses = np.logaddexp(0.0, logits) - labels * logits
    return float(np.average(losses, weights=weights))


@register("metric", "normalized_entropy", kinds={"binary": 30}, heading="norm. entropy", lower_is_better=True)
def normalized_entropy(logits: Array, labels: Array, weights: Array) -> float:
    """Log loss divided by that of always predicting the mean label (He et al., ADKDD 2014); below 1 is better."""
    if weights.sum() == 0:
        return float("nan")
    rate = float(np.average(labels, weights=weights))
    if rate in (0.0, 1.0):
        return float("nan")
    entropy = -(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate))
    return float(log_loss(logits, labels, weights) / entropy)


@register("metric", "calibration", kinds={"binary": 40}, heading="calibration", form="{:.3f}")
def calibration(logits: Array, labels: Array, weights: Array) -> float:
    """Predicted positives divided by observed ones: 1 is perfect, above 1 predicts too many."""
    observed = float((labels * weights).sum())
    if observed == 0:
        return float("nan")
    predicted = float((weights * np.exp(-np.logaddexp(0.0, -logits))).sum())
    return predicted / observed


@register("metric", "positives", kinds={"binary": 50}, heading="positives", form="{:,.0f}")
def positives(logits: Array, labels: Array, weights: Array) -> float:
    """Sum of the weights of positive rows."""
    return float((labels * weights).sum())
