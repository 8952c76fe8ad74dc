"""Metrics of a binary task by thresholds on its scores, exact over all rows; arguments as in :mod:`dlrm_mtl.metrics.binary`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import register
from dlrm_mtl.metrics.forms import OverScores, RowSums, ScoreRange, mean

Array = NDArray[np.float64]

BINS = 15
"""Number of equally wide intervals of probability in the expected calibration error (Guo et al., ICML 2017)."""


def _average_precision_part(scores: ScoreRange) -> float:
    positive, negative = scores.below
    found, wrong = scores.positive_total - positive, scores.negative_total - negative  # with at least each score
    both = found + wrong
    precision = np.divide(found, both, out=np.ones_like(found), where=both > 0)
    return float((scores.positive * precision).sum() / scores.positive_total)


_average_precision = OverScores(_average_precision_part, needs_negatives=False)


@register(
    "metric", "average_precision", kinds={"binary": 60}, heading="avg. precision", detail=True, over=_average_precision
)
def average_precision(logits: Array, labels: Array, weights: Array) -> float:
    """Area under the precision-recall curve as a step function: sum of (recall_n - recall_{n-1}) precision_n.

    The thresholds n are the distinct scores, from the highest; as ``sklearn.metrics.average_precision_score``.

    Raises:
        ValueError: a logit is nan.
    """
    return _average_precision(logits, labels, weights)


def _ks_part(scores: ScoreRange) -> float:
    positive, negative = scores.below
    rates = positive / scores.positive_total - negative / scores.negative_total
    return float(np.abs(rates).max(initial=0.0))


_ks = OverScores(_ks_part, combine="max")


@register("metric", "ks", kinds={"binary": 70}, heading="KS", detail=True, over=_ks)
def ks(logits: Array, labels: Array, weights: Array) -> float:
    """Kolmogorov-Smirnov statistic: largest difference of the true and the false positive rate over all thresholds.

    Raises:
        ValueError: a logit is nan.
    """
    return _ks(logits, labels, weights)


def _decisions(logits: Array, labels: Array, weights: Array) -> Array:
    """Weights of the true positives, of the predicted ones and of the observed ones, at a probability of 0.5."""
    predicted = weights * (logits > 0)
    return np.stack([predicted * labels, predicted, weights * labels])


_precision = RowSums(_decisions, lambda sums: _share(sums[0], sums[1]))
_recall = RowSums(_decisions, lambda sums: _share(sums[0], sums[2]))
_f1 = RowSums(_decisions, lambda sums: _share(2 * sums[0], sums[1] + sums[2]))


@register("metric", "precision", kinds={"binary": 80}, heading="precision", detail=True, over=_precision)
def precision(logits: Array, labels: Array, weights: Array) -> float:
    """Positives among the rows whose probability is above 0.5; nan without such a row."""
    return _precision(logits, labels, weights)


@register("metric", "recall", kinds={"binary": 90}, heading="recall", detail=True, over=_recall)
def recall(logits: Array, labels: Array, weights: Array) -> float:
    """Share of the positives whose probability is above 0.5; nan without a positive."""
    return _recall(logits, labels, weights)


@register("metric", "f1", kinds={"binary": 100}, heading="F1", detail=True, over=_f1)
def f1(logits: Array, labels: Array, weights: Array) -> float:
    """Harmonic mean of precision and recall at a probability of 0.5; nan without a positive, observed or predicted."""
    return _f1(logits, labels, weights)


def _gaps(logits: Array, labels: Array, weights: Array) -> Array:
    """[BINS + 1, N]: weight times probability minus label in the row's interval, 0 in the others; weight."""
    probabilities = np.exp(-np.logaddexp(0.0, -logits))
    inside = np.minimum((np.nan_to_num(probabilities) * BINS).astype(np.int64), BINS - 1)
    terms = np.zeros((BINS + 1, len(logits)))
    terms[inside, np.arange(len(logits))] = weights * (probabilities - labels)
    terms[BINS] = weights
    return terms


_ece = RowSums(_gaps, lambda sums: mean(np.array([np.abs(sums[:BINS]).sum(), sums[BINS]])))


@register(
    "metric", "ece", kinds={"binary": 110}, heading="ECE", form="{:.5f}", lower_is_better=True, detail=True, over=_ece
)
def ece(logits: Array, labels: Array, weights: Array) -> float:
    """Expected calibration error: mean over rows of |mean probability - rate of positives| in their interval of probability.

    There are :data:`BINS` intervals of equal width (Guo et al., ICML 2017).
    """
    return _ece(logits, labels, weights)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
