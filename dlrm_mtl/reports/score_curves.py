"""ROC, precision-recall and reliability curves from scores in bins. Shapes: n bins, k points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dlrm_mtl.metrics.score_bins import ScoreBins

Array = NDArray[np.float64]

POINTS = 15
"""Most points of a reliability curve; each stands for about equally many rows."""


@dataclass(frozen=True)
class Reliability:
    """Mean prediction beside what was observed, [k] each."""

    predicted: Array
    observed: Array
    low: Array
    """Lower end of the 95 % interval of ``observed`` (Wilson, 1927); nan for a real label."""
    high: Array
    """Upper end."""


def has_both_classes(bins: ScoreBins) -> bool:
    """True if there are positives and negatives, so that the curves are defined."""
    return bins.kind != "real" and 0 < bins.observed.sum() < bins.weight.sum()


def roc(bins: ScoreBins) -> tuple[Array, Array]:
    """False and true positive rates [n + 1] at all thresholds, from the highest; for both classes."""
    found, wrong = _above(bins)
    return wrong / wrong[-1], found / found[-1]


def precision_recall(bins: ScoreBins) -> tuple[Array, Array]:
    """Recall and precision [n] at all thresholds, from the highest; for both classes."""
    found, wrong = (counts[1:] for counts in _above(bins))
    return found / found[-1], found / (found + wrong)


def reliability(bins: ScoreBins, points: int = POINTS) -> Reliability:
    """Mean prediction and mean label of rows with similar scores, by rising scores."""
    place = _places(bins, points)
    rows, weight, observed, predicted = (
        np.bincount(place, column) for column in (bins.rows, bins.weight, bins.observed, bins.predicted)
    )
    mean = observed / weight
    if bins.kind == "real":
        nothing = np.full(len(mean), np.nan)
        return Reliability(predicted / weight, mean, nothing, nothing)
    square = ndtri(0.975) ** 2
    middle = (mean + square / (2 * rows)) / (1 + square / rows)
    half = np.sqrt(square * (mean * (1 - mean) / rows + square / (4 * rows**2))) / (1 + square / rows)
    return Reliability(predicted / weight, mean, middle - half, middle + half)


def prediction_counts(bins: ScoreBins, edges: Array) -> Array:
    """Rows [k] by mean prediction of their bin between ``edges`` [k + 1]; those outside count at the ends."""
    mean = np.clip(bins.predicted / bins.weight, edges[0], edges[-1])
    return np.histogram(mean, edges, weights=bins.rows)[0].astype(np.float64)


def _above(bins: ScoreBins) -> tuple[Array, Array]:
    """Weights [n + 1] of positives and negatives above each threshold, from the highest."""
    columns = (bins.observed, bins.weight - bins.observed)
    found, wrong = (np.concatenate([[0.0], np.cumsum(column[::-1])]) for column in columns)
    return found, np.maximum.accumulate(wrong)


def _places(bins: ScoreBins, points: int) -> NDArray[np.int64]:
    """Number of the point of every bin."""
    ends = np.cumsum(bins.rows)
    place = np.minimum((ends - bins.rows / 2) * points // ends[-1], points - 1).astype(np.int64)
    return np.asarray(np.unique(place, return_inverse=True)[1])
