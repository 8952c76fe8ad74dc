"""Differences between two samples of a feature: row by row, or of their distributions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.serve.skew.values import FeatureValues

BINS = 10
"""Number of bins of numbers, with equally many training values each."""
TOP = 50
"""Number of the most frequent training ids that have a bin of their own."""
LEAST = 1e-4
"""Smallest share of a bin."""
CLOSE = 1e-6
"""Largest relative difference of equal numbers: the reader rounds to float32."""


def differing(one: FeatureValues, other: FeatureValues, kind: str) -> NDArray[np.bool_]:
    """[N] mask of the rows whose values differ."""
    differs = one.lengths != other.lengths
    same = FeatureValues(one.values, one.lengths).take(np.flatnonzero(~differs))
    there = other.take(np.flatnonzero(~differs))
    if kind == "dense":
        scale = np.maximum(np.abs(same.values), np.abs(there.values))
        bad = ~(np.abs(same.values - there.values) <= CLOSE * scale)
    else:
        bad = same.values != there.values
    counted = np.concatenate([[0], np.cumsum(bad, dtype=np.int64)])
    ends = np.cumsum(same.lengths)
    differs[~differs] = counted[ends] > counted[ends - same.lengths]
    return differs


def population_stability(training: FeatureValues, log: FeatureValues, kind: str) -> float:
    """Population stability index: sum of (p - q) ln(p / q) over bins with shares p in training and q in the log.

    Below 0.1 is usually called no change, above 0.25 a large one.

    Args:
        training: values in training.
        log: values in the log.
        kind: kind of the feature. Numbers have 10 bins of equally many training values, ids one for each of the 50 most
            frequent ones in training, and one for the others; rows without a value are one more.
    """
    edges = _edges(training.values) if kind == "dense" else _frequent(training.values)
    shares = [_shares(values, edges, kind) for values in (training, log)]
    p, q = (np.maximum(each, LEAST) for each in shares)
    return float(np.sum((p - q) * np.log(p / q)))


def _edges(values: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
    if not len(values):
        return np.empty(0)
    return np.unique(np.quantile(values, np.arange(1, BINS) / BINS)).astype(np.float64)


def _frequent(values: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
    ids, counts = np.unique(values, return_counts=True)
    return np.sort(ids[np.argsort(-counts, kind="stable")[:TOP]]).astype(np.float64)


def _shares(given: FeatureValues, edges: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    if kind == "dense":
        bins = np.searchsorted(edges, given.values, side="left")
    else:
        bins = np.minimum(np.searchsorted(edges, given.values), max(len(edges) - 1, 0))
        found = edges[bins] == given.values if len(edges) else np.zeros(len(bins), np.bool_)
        bins = np.where(found, bins, len(edges))
    counts = np.bincount(bins, minlength=len(edges) + 1).astype(np.float64)
    counts = np.append(counts, np.count_nonzero(given.lengths == 0))
    return counts / max(counts.sum(), 1.0)
