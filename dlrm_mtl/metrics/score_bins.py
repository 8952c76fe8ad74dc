"""Scores of a task in bins, of bounded size: enough for ROC, precision-recall and calibration curves without the rows.

The bins are the same on any number of processes: their ends are exact quantiles over all rows, found by bisection, so no
process sees another one's scores. Shapes: N rows, T tasks, S samples, n bins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Total = Callable[[NDArray[Any]], NDArray[Any]]
"""Sum of an array over all processes."""

QUANTILES = 500
"""Number of bins with equal numbers of rows. They are cut at as many quantiles of the positives, too, which may be rare."""


@dataclass(frozen=True)
class ScoreBins:
    """Rows of a task that count (weight above 0), by ascending score; rows with the same score are in the same bin."""

    kind: str
    """Kind of the task."""
    upto: NDArray[np.float32]
    """[n], end of the bin, which belongs to it: a logit, or the prediction of a real label."""
    rows: Integers
    """[n], number of rows."""
    positives: Integers
    """[n], number of rows with a label above 0."""
    weight: Array
    """[n], sum of weights."""
    observed: Array
    """[n], weighted sum of labels."""
    predicted: Array
    """[n], weighted sum of predictions: probabilities for a binary task, else scores."""
    errors: Array
    """[3, n], weighted sums of absolute, squared and fourth-power errors of a real task; 0 for others."""

    def as_json(self) -> dict[str, Any]:
        """Return the bins as lists; sums have 9 digits."""
        content: dict[str, Any] = {"kind": self.kind, "upto": [float(f"{value:.9g}") for value in self.upto]}
        content |= {"rows": self.rows.tolist(), "positives": self.positives.tolist()}
        for name in ("weight", "observed", "predicted"):
            content[name] = _short(getattr(self, name))
        if self.errors.any():
            content["errors"] = [_short(row) for row in self.errors]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ScoreBins:
        """Bins from the result of :meth:`as_json`.

        Raises:
            ValueError: the content is something else.
        """
        try:
            bins = cls(
                kind=str(content["kind"]),
                upto=np.array(content["upto"], np.float32),
                rows=np.array(content["rows"], np.int64),
                positives=np.array(content["positives"], np.int64),
                weight=np.array(content["weight"], np.float64),
                observed=np.array(content["observed"], np.float64),
                predicted=np.array(content["predicted"], np.float64),
                errors=np.array(content.get("errors", np.zeros((3, len(content["upto"])))), np.float64),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"no bins of scores: {error!r}") from None
        arrays = [getattr(bins, field.name) for field in fields(cls)[1:-1]]
        if any(array.shape != bins.upto.shape or array.ndim != 1 for array in arrays):
            raise ValueError("bins of scores of different lengths")
        return bins


def score_bins(
    scores: NDArray[np.float32],
    labels: NDArray[Any],
    weights: NDArray[Any],
    kinds: Sequence[str],
    total: Total = lambda array: array,
) -> list[ScoreBins]:
    """Put the scores of every task into at most three times :data:`QUANTILES` bins.

    Every process must call this; all get the bins of all rows. Rows whose score is not finite are left out.

    Args:
        scores: [N, T], logits or predictions of this process's rows.
        labels: [N, T].
        weights: [N, T], 0 for a row that does not count.
        kinds: kind of each task.
        total: sum of an array over all processes; default: there is one process.
    """
    keys: list[tuple[NDArray[np.bool_], Integers]] = []
    samples: list[Integers] = []
    for column, kind in enumerate(kinds):
        counted = (weights[:, column] > 0) & np.isfinite(scores[:, column])
        own = _keys(scores[counted, column])
        keys.append((counted, own))
        samples += [np.sort(own), np.sort(own[labels[counted, column] > 0])] if kind != "real" else [np.sort(own)]
    found = iter(quantile_keys(samples, QUANTILES, total))
    result = []
    for column, kind in enumerate(kinds):
        counted, own = keys[column]
        ends = next(found)
        if kind != "real":
            # A bin that ends at a positive would be lower on average without it: the last score has a bin of its own.
            positive = next(found)
            ends = np.unique(np.concatenate([ends, positive, positive[positive > 0] - 1]))
        values = np.stack([array[counted, column] for array in (scores, labels, weights)]).astype(np.float64)
        result.append(_bins(kind, ends, own, values, total))
    return result


def quantile_keys(samples: Sequence[Integers], count: int, total: Total) -> list[Integers]:
    """Smallest keys up to which ``1 / count, 2 / count, ... 1`` of a sample lie, exact over all processes.

    Args:
        samples: S arrays of ascending keys, at least 0 and less than 2**32; this process's part.
        count: number of quantiles.
        total: sum of an array over all processes.

    Returns:
        S arrays of different ascending keys; empty for an empty sample.
    """
    sizes = total(np.array([len(sample) for sample in samples], np.int64))
    ranks = np.array([[-(-size * number // count) for number in range(1, count + 1)] for size in sizes.tolist()])
    ranks = ranks.reshape(len(samples), count)
    low, high = np.zeros_like(ranks), np.full_like(ranks, 2**32 - 1)
    while (low < high).any():
        middle = (low + high) // 2
        there = [np.searchsorted(sample, row, side="right") for sample, row in zip(samples, middle, strict=True)]
        enough = total(np.array(there, np.int64)) >= ranks
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return [np.unique(row) if size else np.empty(0, np.int64) for row, size in zip(high, sizes, strict=True)]


def _bins(kind: str, ends: Integers, keys: Integers, values: Array, total: Total) -> ScoreBins:
    """Bins with the last keys ``ends`` [n], from scores, labels and weights [3, N] of the rows that count."""
    scores, labels, weights = values
    place = np.searchsorted(ends, keys)
    predicted = np.exp(-np.logaddexp(0.0, -scores)) if kind == "binary" else scores
    error = np.abs(scores - labels) if kind == "real" else np.zeros_like(scores)
    columns = (weights, weights * labels, weights * predicted, *(weights * error**power for power in (1, 2, 4)))
    counts = [np.bincount(place, minlength=len(ends)), np.bincount(place[labels > 0], minlength=len(ends))]
    sums = [np.bincount(place, column, minlength=len(ends)) for column in columns]
    rows, positives = total(np.array(counts, np.int64))
    kept = rows > 0
    weight, observed, summed, *errors = total(np.array(sums, np.float64))[:, kept]
    return ScoreBins(kind, _floats(ends[kept]), rows[kept], positives[kept], weight, observed, summed, np.array(errors))


def _keys(scores: NDArray[np.float32]) -> Integers:
    """Integers in the order of the scores, equal for equal scores."""
    bits = (scores.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def _floats(keys: Integers) -> NDArray[np.float32]:
    """Inverse of :func:`_keys`."""
    bits = keys.astype(np.uint32)
    return np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits).astype(np.uint32).view(np.float32)


def _short(values: Array) -> list[float]:
    return [float(f"{value:.9g}") for value in values]
