"""Metrics of a binary task by thresholds on its scores, exact over all rows; arguments as in :mod:`dlrm_mtl.metrics.binary`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import register

Array = NDArray[np.float64]

BINS = 15
"""Number of equally wide intervals of probability in the expected calibration error (Guo et al., ICML 2017)."""


@register("metric", "average_precision", kinds={"binary": 60}, heading="avg. precision", detail=True)
def average_precision(logits: Array, labels: Array, weights: Array) -> float:
    """Area under the precision-recall curve as a step function: sum of (recall_n - recall_{n-1}) precision_n.

    The thresholds n are the distinct scores, from the highest; as ``sklearn.metrics.average_precision_score``.
    """
    found, wrong = _above(logits, labels, weights)
    if not len(found) or found[-1] == 0:
        return float("nan")
    both = found + wrong
    precision = np.divide(found, both, out=np.ones_like(found), where=both > 0)
    return float((np.diff(found, prepend=0.0) * precision).sum() / found[-1])


@register("metric", "ks", kinds={"binary": 70}, heading="KS", detail=True)
def ks(logits: Array, labels: Array, weights: Array) -> float:
    """Kolmogorov-Smirnov statistic: largest difference of the true and the false positive rate over all thresholds."""
    found, wrong = _above(logits, labels, weights)
    if not len(found) or found[-1] == 0 or wrong[-1] == 0:
        return float("nan")
    return float(np.abs(found / found[-1] - wrong / wrong[-1]).max())


@register("metric", "precision", kinds={"binary": 80}, heading="precision", detail=True)
def precision(logits: Array, labels: Array, weights: Array) -> float:
    """Positives among the rows whose probability is above 0.5; nan without such a row."""
    predicted = weights * (logits > 0)
    return _share((predicted * labels).sum(), predicted.sum())


@register("metric", "recall", kinds={"binary": 90}, heading="recall", detail=True)
def recall(logits: Array, labels: Array, weights: Array) -> float:
    """Share of the positives whose probability is above 0.5; nan without a positive."""
    positive = weights * labels
    return _share((positive * (logits > 0)).sum(), positive.sum())


@register("metric", "f1", kinds={"binary": 100}, heading="F1", detail=True)
def f1(logits: Array, labels: Array, weights: Array) -> float:
    """Harmonic mean of precision and recall at a probability of 0.5; nan without a positive, observed or predicted."""
    predicted, positive = weights * (logits > 0), weights * labels
    return _share(2 * (predicted * labels).sum(), predicted.sum() + positive.sum())


@register("metric", "ece", kinds={"binary": 110}, heading="ECE", form="{:.5f}", lower_is_better=True, detail=True)
def ece(logits: Array, labels: Array, weights: Array) -> float:
    """Expected calibration error: mean over rows of |mean probability - rate of positives| in their interval of probability.

    There are :data:`BINS` intervals of equal width (Guo et al., ICML 2017).
    """
    total = weights.sum()
    if total == 0:
        return float("nan")
    probabilities = np.exp(-np.logaddexp(0.0, -logits))
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights * (probabilities - labels), minlength=BINS)
    return float(np.abs(gaps).sum() / total)


def _above(logits: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Weights of positives and of negatives with at least each distinct score, from the highest; [distinct scores]."""
    order = np.argsort(-logits, kind="stable")
    scores = logits[order]
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.empty(0, dtype=np.int64)
    found, wrong = np.cumsum((weights * labels)[order])[ends], np.cumsum((weights * (1.0 - labels))[order])[ends]
    return found, wrong


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
