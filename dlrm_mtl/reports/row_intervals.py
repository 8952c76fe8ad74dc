"""Intervals of a metric over the rows of a split, from scores in bins.

For binary labels: the bootstrap (Efron, 1979). A draw takes as many rows as there are, with replacement; of rows in bins this
is a multinomial draw of (bin, label) pairs. For real labels: the normal approximation, from the moments of the errors.
Shapes: D draws, n bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dlrm_mtl.metrics.score_bins import ScoreBins

Array = NDArray[np.float64]
Interval = tuple[float, float]

DRAWS = 1000
MOST_BINS = 300
"""Largest number of bins that are drawn from; neighbours are put together, which moves a metric less than its interval."""
SEED = 20_240_601


def row_intervals(bins: ScoreBins, exact: Mapping[str, float]) -> dict[str, Interval]:
    """95 % intervals by metric, around the metrics of the same rows.

    Args:
        bins: scores of a task.
        exact: metrics of the task by name, computed from the rows.

    Returns:
        Intervals of the metrics that bins give: of others, and where a metric is undefined, there is none.
    """
    if bins.rows.sum() < 2:
        return {}
    found = _errors(bins) if bins.kind == "real" else _bootstrap(bins, [*exact])
    return {
        name: (value + low, value + high)
        for name, (low, high) in found.items()
        if math.isfinite(value := exact.get(name, math.nan)) and math.isfinite(low) and math.isfinite(high)
    }


def _errors(bins: ScoreBins) -> dict[str, Interval]:
    """Offsets of the interval's ends, where the weights of all rows are taken as equal."""
    absolute, square, fourth = bins.errors.sum(axis=1) / bins.weight.sum()
    factor = ndtri(0.975) / math.sqrt(bins.rows.sum() - 1)
    of_absolute, of_square = (
        factor * math.sqrt(max(second - first**2, 0.0)) for first, second in ((absolute, square), (square, fourth))
    )
    root = math.sqrt(square)
    ends = [math.sqrt(max(square + sign * of_square, 0.0)) - root for sign in (-1, 1)]
    return {"mae": (-of_absolute, of_absolute), "mse": (-of_square, of_square), "rmse": (ends[0], ends[1])}


def _bootstrap(bins: ScoreBins, names: list[str]) -> dict[str, Interval]:
    """Offsets of the 2.5 % and 97.5 % quantiles of the draws."""
    names = [name for name in names if name in METRICS and (bins.kind == "binary" or name == "auc")]
    if not names:
        return {}
    rows, positives, weight, observed, predicted = _fewer(bins)
    cells = np.concatenate([positives, rows - positives])
    sums = np.concatenate([observed, weight - observed])
    each = np.divide(sums, cells, out=np.zeros_like(sums), where=cells > 0)  # mean weight of a row
    draws = np.random.default_rng(SEED).multinomial(int(cells.sum()), cells / cells.sum(), DRAWS) * each
    probability = np.clip(predicted / weight, 1e-15, 1 - 1e-15)
    result = {}
    for name in names:
        with np.errstate(invalid="ignore", divide="ignore"):
            point = METRICS[name](observed[None], (weight - observed)[None], probability)[0]
            drawn = METRICS[name](draws[:, : len(rows)], draws[:, len(rows) :], probability)
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) > DRAWS / 2:
            low, high = np.quantile(drawn, [0.025, 0.975]) - point
            result[name] = (float(low), float(high))
    return result


def _fewer(bins: ScoreBins) -> list[Array]:
    """Rows, positives, weight, observed and predicted, in at most :data:`MOST_BINS` bins with about equally many rows."""
    ends = np.cumsum(bins.rows)
    place = np.minimum((ends - bins.rows / 2) * MOST_BINS // ends[-1], MOST_BINS - 1).astype(np.int64)
    place = np.unique(place, return_inverse=True)[1]
    columns = (bins.rows, bins.positives, bins.weight, bins.observed, bins.predicted)
    return [np.bincount(place, column).astype(np.float64) for column in columns]


def _auc(positive: Array, negative: Array, probability: Array) -> Array:
    below = np.cumsum(negative, axis=1) - negative
    areas = (positive * (below + negative / 2)).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
    return np.asarray(areas)


def _log_loss(positive: Array, negative: Array, probability: Array) -> Array:
    loss = -(positive @ np.log(probability)) - negative @ np.log1p(-probability)
    return np.asarray(loss / (positive + negative).sum(axis=1))


def _normalized_entropy(positive: Array, negative: Array, probability: Array) -> Array:
    rate = positive.sum(axis=1) / (positive + negative).sum(axis=1)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return _log_loss(positive, negative, probability) / entropy


def _calibration(positive: Array, negative: Array, probability: Array) -> Array:
    return np.asarray((positive + negative) @ probability / positive.sum(axis=1))


def _above(counts: Array) -> Array:
    """Weights in a bin and all higher ones."""
    return np.asarray(np.cumsum(counts[:, ::-1], axis=1)[:, ::-1])


def _average_precision(positive: Array, negative: Array, probability: Array) -> Array:
    found, wrong = _above(positive), _above(negative)
    precision = np.divide(found, found + wrong, out=np.zeros_like(found), where=found + wrong > 0)
    return np.asarray((positive * precision).sum(axis=1) / positive.sum(axis=1))


def _ks(positive: Array, negative: Array, probability: Array) -> Array:
    found, wrong = _above(positive), _above(negative)
    return np.asarray(np.abs(found / found[:, :1] - wrong / wrong[:, :1]).max(axis=1))


def _precision(positive: Array, negative: Array, probability: Array) -> Array:
    found, wrong = (counts[:, probability > 0.5].sum(axis=1) for counts in (positive, negative))
    return np.asarray(found / (found + wrong))


def _recall(positive: Array, negative: Array, probability: Array) -> Array:
    return np.asarray(positive[:, probability > 0.5].sum(axis=1) / positive.sum(axis=1))


def _f1(positive: Array, negative: Array, probability: Array) -> Array:
    found, wrong = (counts[:, probability > 0.5].sum(axis=1) for counts in (positive, negative))
    return np.asarray(2 * found / (found + wrong + positive.sum(axis=1)))


METRICS: Mapping[str, Callable[[Array, Array, Array], Array]] = {
    "auc": _auc,
    "log_loss": _log_loss,
    "normalized_entropy": _normalized_entropy,
    "calibration": _calibration,
    "average_precision": _average_precision,
    "ks": _ks,
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
}
"""Metrics [D] of weights of positives and negatives [D, n] in bins with mean probabilities [n], ascending."""
