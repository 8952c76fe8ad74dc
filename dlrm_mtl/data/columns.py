"""Arrow columns to blocks of numpy arrays. No Python loop over rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from dlrm_mtl.data.check import Layout, bad_id, bad_label, bad_number, bad_weight
from dlrm_mtl.data.spec import DenseStatistics, FeatureSpec, LabelSpec
from dlrm_mtl.errors import UserError

Array = NDArray[Any]
ABSENT = -1
"""Stands for a null in a column of single ids."""


@dataclass
class Lists:
    """A column of lists: row i holds values[starts[i] : starts[i] + lengths[i]]."""

    values: Array
    """[number of ids] int32 or int64."""
    starts: Array
    """[rows] int64."""
    lengths: Array
    """[rows] int32."""

    def take(self, index: Array) -> Lists:
        """The rows ``index``, in that order, with their ids one after the other."""
        lengths = self.lengths[index]
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        # The id at position p of row r comes from self.starts[index[r]] + p - starts[r].
        positions = np.repeat(self.starts[index] - starts, lengths)
        positions += np.arange(len(positions))
        return Lists(np.take(self.values, positions, mode="clip"), starts, lengths)

    def packed(self) -> Lists:
        """The same rows, with their ids one after the other: lists that were cut short leave gaps."""
        gaps = len(self.values) != int(self.lengths.sum(dtype=np.int64))
        return self.take(np.arange(len(self.lengths))) if gaps else self

    def ids(self, start: int, stop: int) -> Array:
        """The ids of rows start to stop (at least one row) of lists whose ids lie one after the other."""
        return self.values[self.starts[start] : self.starts[stop - 1] + self.lengths[stop - 1]]


@dataclass
class Block:
    """Rows ready to be sliced into batches; see :mod:`dlrm_mtl.data.assemble`.

    Rows lie next to each other in memory, not columns: picking rows in a random order then reads few cache lines.
    """

    ids: Array
    """[rows, columns of single ids] int32 or int64, in the order of the keys; :data:`ABSENT` where null."""
    lists: list[Lists]
    """Columns of lists, in the order of the keys."""
    numbers: Array
    """[rows, D + 2 T] float32: dense features (standardised), labels, weights."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.numbers.shape[0])

    def packed(self) -> Block:
        """The same rows in the same order, ready to be sliced."""
        return Block(self.ids, [lists.packed() for lists in self.lists], self.numbers)

    def take(self, index: NDArray[np.int64]) -> Block:
        """The rows ``index``, in that order."""
        return Block(
            ids=np.take(self.ids, index, axis=0, mode="clip"),  # index is in range: clip only saves the check
            lists=[lists.take(index) for lists in self.lists],
            numbers=np.take(self.numbers, index, axis=0, mode="clip"),
        )


class BlockBuilder:
    """Fills a block of a known number of rows, table by table."""

    def __init__(self, layout: Layout, rows: int, count_unknown: Callable[[str, int], None]) -> None:
        """``count_unknown`` is called with a feature and how many of its ids were out of range and read as 0."""
        self._layout = layout
        self._selection = layout.selection
        self._count_unknown = count_unknown
        self._rows = 0
        singles = [feature for feature in self._selection.sparse if feature.name not in layout.lists]
        dense, labels = len(self._selection.dense), len(self._selection.labels)
        self._dtype = id_dtype(self._selection.vocabulary_sizes)
        self._singles = singles
        self._ids: Array = np.empty((len(singles), rows), self._dtype)
        self._numbers: Array = np.empty((dense + 2 * labels, rows), np.float32)
        self._lists: dict[str, list[Lists]] = {
            feature.name: [] for feature in self._selection.sparse if feature.name in layout.lists
        }

    def add(self, table: pa.Table, place: str, first_row: int = 0) -> None:
        """Append the rows of ``table``; ``place`` and ``first_row`` say where they are from, for error messages.

        Raises :class:`UserError` for an id, a label, a weight or a number that is not allowed.
        """
        part = slice(self._rows, self._rows + table.num_rows)
        self._rows = part.stop
        if table.num_rows == 0:
            return
        source = _Source(table, place, first_row)
        for position, feature in enumerate(self._singles):
            self._add_single(source, feature, self._ids[position, part])
        for feature in self._selection.sparse:
            if feature.name in self._lists:
                self._lists[feature.name].append(self._list(source, feature))
        numbers = self._numbers[:, part]
        dense, labels = len(self._selection.dense), len(self._selection.labels)
        for position, feature in enumerate(self._selection.dense):
            _add_dense(source, feature, numbers[position], self._selection.dense_limit)
        weight = _weights(source, self._selection.weight) if self._selection.weight is not None else None
        for position, label in enumerate(self._selection.labels, start=dense):
            if label.name in self._layout.absent:
                numbers[position] = 0
                numbers[position + labels] = 0
            else:
                _add_label(source, label, numbers[position], numbers[position + labels], weight)

    def finish(self) -> Block:
        """Return the block; all its rows must have been added."""
        assert self._rows == self._numbers.shape[1], (self._rows, self._numbers.shape)
        lists = [_joined(parts, self._dtype) for parts in self._lists.values()]
        return Block(np.ascontiguousarray(self._ids.T), lists, np.ascontiguousarray(self._numbers.T))

    def _add_single(self, source: _Source, feature: FeatureSpec, out: Array) -> None:
        array = source.column(feature.source)
        values, null = _integers(array)
        out[:] = self._in_range(source, feature, values, lambda position: position)
        if null is not None:
            out[null] = ABSENT

    def _list(self, source: _Source, feature: FeatureSpec) -> Lists:
        array = source.column(feature.source)
        lengths = _numpy(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int32)
        flat = array.flatten()  # leaves null lists out
        ends = np.cumsum(lengths, dtype=np.int64)
        if flat.null_count:  # drop null elements: count those that stay up to each list's ends
            stay = np.concatenate([[0], np.cumsum(_numpy(flat.is_valid()), dtype=np.int64)])
            lengths = (stay[ends] - stay[ends - lengths]).astype(np.int32)
            ends = np.cumsum(lengths, dtype=np.int64)
            flat = flat.drop_null()
        values, _ = _integers(flat)
        values = self._in_range(
            source, feature, values, lambda position: int(np.searchsorted(ends, position, side="right"))
        )
        if feature.kind == "sequence":  # the most recent entries are the last ones
            lengths = np.minimum(lengths, self._selection.max_sequence_length)
        return Lists(values.astype(self._dtype, copy=False), ends - lengths, lengths)

    def _in_range(self, source: _Source, feature: FeatureSpec, values: Array, row: Callable[[int], int]) -> Array:
        size = self._selection.vocabulary_sizes[feature.name]
        if len(values) == 0 or (values.min() >= 0 and values.max() < size):
            return values
        bad = (values < 0) | (values >= size)
        if self._selection.out_of_range == "error":
            position = int(np.argmax(bad))
            raise bad_id(source.row(row(position)), feature, values[position], size)
        self._count_unknown(feature.name, int(np.count_nonzero(bad)))
        return np.where(bad, values.dtype.type(0), values)


@dataclass(frozen=True)
class _Source:
    table: pa.Table
    place: str
    first_row: int

    def column(self, name: str) -> pa.Array:
        column = self.table.column(name)
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # what older versions of pyarrow give for columns without chunks
            array = pa.concat_arrays(array.chunks)
        return array

    def row(self, position: int) -> str:
        return f"{self.place}, row {self.first_row + position}"


def id_dtype(vocabulary_sizes: dict[str, int]) -> type[np.int32] | type[np.int64]:
    """The narrower integer type that holds all ids."""
    return np.int32 if max(vocabulary_sizes.values(), default=1) <= 2**31 else np.int64


def _joined(parts: list[Lists], dtype: Any) -> Lists:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Lists(np.empty(0, dtype), np.empty(0, np.int64), np.empty(0, np.int32))
    offsets = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
    return Lists(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.starts + offset for part, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([part.lengths for part in parts]),
    )


def _numpy(array: pa.Array) -> Array:
    result: Array = array.to_numpy(zero_copy_only=False)
    return result


def _integers(array: pa.Array) -> tuple[Array, Array | None]:
    """Values (0 where null), and the mask of nulls if there are any."""
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pt.is_null(array.type):
        array = array.cast(pa.int32())
    if array.null_count == 0:
        return _numpy(array), None
    return _numpy(pc.fill_null(array, 0)), _numpy(array.is_null())


def _floats(array: pa.Array) -> tuple[Array, Array | None]:
    """Values as float64 (0 where null), and the mask of nulls if there are any."""
    if pt.is_decimal(array.type) or pt.is_null(array.type) or pt.is_boolean(array.type):
        array = array.cast(pa.uint8() if pt.is_boolean(array.type) else pa.float64())
    null = None
    if array.null_count:
        null = _numpy(array.is_null())
        array = pc.fill_null(array, pa.scalar(0, array.type))
    return _numpy(array).astype(np.float64, copy=False), null


def _add_dense(source: _Source, feature: FeatureSpec, out: Array, limit: float | None) -> None:
    values, null = _floats(source.column(feature.source))
    if isinstance(feature.statistics, DenseStatistics):
        std = feature.statistics.std or 1.0
        scaled = values - feature.statistics.mean
        scaled /= std
    else:
        scaled = values
    with np.errstate(over="ignore"):
        out[:] = scaled
    if null is not None:
        out[null] = 0
    finite = np.isfinite(out)
    if not finite.all():
        position = int(np.argmin(finite))
        raise bad_number(source.row(position), feature.source, values[position])
    if limit is not None:
        np.clip(out, -limit, limit, out=out)


def _add_label(source: _Source, label: LabelSpec, out: Array, weights: Array, weight: Array | None) -> None:
    values, null = _floats(source.column(label.source))
    if label.kind == "binary":
        good = (values == 0) | (values == 1)
        error: Callable[[str, str, Any], UserError] = bad_label
    else:
        good = np.isfinite(values.astype(np.float32))
        error = bad_number
    if not good.all():
        position = int(np.argmin(good))
        raise error(source.row(position), label.source, values[position])
    out[:] = values
    weights[:] = 1 if weight is None else weight
    if null is not None:
        weights[null] = 0


def _weights(source: _Source, column: str) -> Array:
    values, null = _floats(source.column(column))
    good = np.isfinite(values) & (values >= 0)
    if null is not None:
        good &= ~null
    if not good.all():
        position = int(np.argmin(good))
        raise bad_weight(
            source.row(position), column, "null" if null is not None and null[position] else values[position]
        )
    return values
