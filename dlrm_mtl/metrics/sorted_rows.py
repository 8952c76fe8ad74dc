"""Rows sorted by integer keys, equal keys merged: what metrics of an order are computed from.

Shapes: N rows, k columns of keys, v columns of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

_WIDE = 1 << 40
"""Range from which a column of keys is replaced by the numbers of its distinct values."""


@dataclass(frozen=True)
class SortedRows:
    """Rows in the order of their keys."""

    keys: Ids
    """[N, k], ascending, compared from the first column on; each once."""
    values: Floats
    """[N, v], sums over the rows with the key."""


def merge_rows(keys: Ids, values: Floats) -> SortedRows:
    """Sort rows by ``keys`` [N, k], and add up the ``values`` [N, v] of equal ones."""
    if not len(keys):
        return SortedRows(keys, values)
    order = np.argsort(_packed(keys), kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]))
    if len(starts) == len(keys):
        return SortedRows(ordered, values[order])
    return SortedRows(ordered[starts], np.add.reduceat(values[order], starts, axis=0))


def score_keys(scores: NDArray[np.float32]) -> Ids:
    """Integers in the order of float32 ``scores``, equal for equal ones; -0 equals 0."""
    bits = (scores + np.float32(0.0)).view(np.int32).astype(np.int64)
    return np.where(bits < 0, np.int64(-(1 << 31)) - bits - 1, bits)


def number_keys(numbers: Floats) -> Ids:
    """Integers in the order of float64 ``numbers``, equal for equal ones; -0 equals 0."""
    bits = (numbers + 0.0).view(np.int64)
    return np.where(bits < 0, ~bits ^ np.int64(-(1 << 63)), bits)


def numbers_of(keys: Ids) -> Floats:
    """Inverse of :func:`number_keys`."""
    return np.where(keys < 0, ~(keys ^ np.int64(-(1 << 63))), keys).view(np.float64)


def _packed(keys: Ids) -> Ids:
    """One integer per row in the order of the rows of ``keys`` [N, k], N > 0."""
    packed = np.zeros(len(keys), np.int64)
    size = 1
    for column in keys.T:
        low, high = int(column.min()), int(column.max())
        if high - low >= _WIDE:
            column = np.unique(column, return_inverse=True)[1].reshape(-1)
            low, high = 0, int(column.max())
        if size * (high - low + 1) >= 1 << 62:
            packed = np.unique(packed, return_inverse=True)[1].reshape(-1)
            size = int(packed.max()) + 1
        size *= high - low + 1
        packed = packed * (high - low + 1) + (column - low)
    return packed
