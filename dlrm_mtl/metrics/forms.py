"""Forms of metrics that several processes compute together, each from its own rows.

A metric of sums adds up terms of single rows. A metric of the order needs the rows sorted by score: each process has a range of
scores, and only sums pass between processes. Both are exact, and equal to the metric of all rows in one place up to rounding.

Shapes: N rows, k terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CHUNK = 1 << 16
"""Rows whose terms are in memory at a time. Sums of chunks are added up pairwise, so rounding does not grow with the rows."""


@dataclass(frozen=True)
class RowSums:
    """A metric that is a function of sums over rows; call it with scores, labels and weights, each [N]."""

    terms: Callable[[Array, Array, Array], Array]
    """Terms [k, N] of scores, labels and weights [N]."""
    metric: Callable[[Array], float]
    """The metric, from the sums [k]; nan where it is not defined."""

    def __call__(self, scores: Array, labels: Array, weights: Array) -> float:
        """Compute the metric of all rows."""
        parts = [
            self.terms(
                scores[start : start + CHUNK], labels[start : start + CHUNK], weights[start : start + CHUNK]
            ).sum(1)
            for start in range(0, max(len(scores), 1), CHUNK)
        ]
        return self.metric(np.sum(parts, axis=0))


@dataclass(frozen=True)
class ScoreRange:
    """Weights of the rows with each distinct score in a range, ascending; n scores.

    Ranges do not overlap: rows with the same score are in one.
    """

    positive: Array
    """[n], weight of the positives."""
    negative: Array
    """[n], weight of the negatives."""
    positive_below: float
    """Weight of the positives in lower ranges."""
    negative_below: float
    positive_total: float
    """Weight of the positives in all ranges."""
    negative_total: float

    @property
    def below(self) -> tuple[Array, Array]:
        """[n], weights of the positives and of the negatives with lower scores than each."""
        positive = np.cumsum(self.positive) - self.positive + self.positive_below
        negative = np.cumsum(self.negative) - self.negative + self.negative_below
        return positive, negative


@dataclass(frozen=True)
class OverScores:
    """A binary metric of the order of scores; call it with scores, labels and weights, each [N]."""

    part: Callable[[ScoreRange], float]
    """Contribution of a range; called only if there are positives, and negatives if these are needed."""
    combine: Literal["sum", "max"] = "sum"
    """Combination of the ranges' contributions."""
    needs_negatives: bool = True
    """True if the metric is not defined without negatives."""

    def defined(self, positive: float, negative: float) -> bool:
        """True if there are rows enough, by their total weights."""
        return positive > 0 and (negative > 0 or not self.needs_negatives)

    def __call__(self, scores: Array, labels: Array, weights: Array) -> float:
        """Compute the metric of all rows; nan where it is not defined.

        Raises:
            ValueError: a score is nan.
        """
        whole = whole_range(scores, labels, weights)
        if not self.defined(whole.positive_total, whole.negative_total):
            return float("nan")
        return self.part(whole)


def whole_range(scores: Array, labels: Array, weights: Array) -> ScoreRange:
    """The range of all scores; raises :class:`ValueError` if one is nan."""
    if np.isnan(scores).any():
        raise ValueError("a score is nan, which has no place in an order; leave such rows out, or repair the model")
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    if not len(starts):
        return ScoreRange(np.empty(0), np.empty(0), 0.0, 0.0, 0.0, 0.0)
    positive = np.add.reduceat((weights * labels)[order], starts)
    negative = np.add.reduceat((weights * (1.0 - labels))[order], starts)
    return ScoreRange(positive, negative, 0.0, 0.0, float(positive.sum()), float(negative.sum()))


def bincount(places: NDArray[np.int64], values: Array, count: int) -> Array:
    """[count], sums of the ``values`` [N] by place; float64 also without rows, unlike numpy's."""
    return np.bincount(places, values, count).astype(np.float64, copy=False)


def mean(total: Array) -> float:
    """Metric from the sums of weighted values and of weights."""
    return float(total[0] / total[1]) if total[1] > 0 else float("nan")
