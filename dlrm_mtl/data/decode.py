"""Decoding of Arrow columns into blocks of numpy arrays, without a Python loop over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
import torch
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.carried_columns import encode
from dlrm_mtl.data.chosen_columns import ANY_ID
from dlrm_mtl.data.file_checks import Layout, bad_id, bad_label, bad_number, bad_weight
from dlrm_mtl.data.spec import DenseStatistics, FeatureSpec, LabelSpec

Array = NDArray[Any]
ABSENT = -1
"""Value of a null in a column of single ids."""


@dataclass
class Lists:
    """A column of lists: row i holds values[offsets[i] : offsets[i + 1]]."""

    values: Array
    """[number of ids] int32 or int64."""
    offsets: Array
    """[rows + 1] int64."""


@dataclass
class DecodedBlock:
    """Rows that can be sliced into batches; see :mod:`dlrm_mtl.data.batching`.

    The layout is columnar, as in Arrow and in a KeyedJaggedTensor: nothing is transposed in between.
    """

    ids: Array
    """[columns of single ids, rows] int32 or int64, in the order of the keys; :data:`ABSENT` where null."""
    complete: Array
    """[columns of single ids] bool: True if no row of the column is :data:`ABSENT`."""
    lists: list[Lists]
    """Columns of lists, in the order of the keys."""
    numbers: Array
    """[D + 2 T, rows] float32: dense features (standardised), labels, weights."""
    carried: NDArray[np.int64] | None = None
    """[C, rows]: columns that are read beside the inputs, if there are any; see :mod:`dlrm_mtl.data.carried_columns`."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.numbers.shape[1])


class Sources:
    """Tables whose concatenated rows become a block, with the origin of each."""

    def __init__(self, tables: Sequence[pa.Table], places: Sequence[tuple[int, str, int]]) -> None:
        """For error messages, each entry of ``places`` is (number of rows, file and row group, first row in it)."""
        self._places = places
        self._ends = np.cumsum([rows for rows, _, _ in places])
        self.rows = int(self._ends[-1])
        # Nullability and metadata are dropped: only some writers set them.
        plain = (pa.Table.from_arrays(one.columns, names=one.column_names) for one in tables if one.num_rows)
        groups = groupby(plain, key=lambda table: table.schema.types)
        # Small row groups are read together column by column: the cost of a column does not depend on their number.
        self._tables = [pa.concat_tables(tables) for _, tables in groups]

    def columns(self, name: str) -> Iterator[tuple[pa.Array, int]]:
        """Values of a column and the number of the first row; neighbouring tables of the same types give one array."""
        first = 0
        for table in self._tables:
            column = table.column(name)
            array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            if isinstance(array, pa.ChunkedArray):  # older pyarrow gives this for columns without chunks
                array = pa.concat_arrays(array.chunks)
            yield array, first
            first += table.num_rows

    def row(self, position: int) -> str:
        """Origin of row number ``position`` of the block: file, row group and row."""
        part = int(np.searchsorted(self._ends, position, side="right"))
        rows, place, first_row = self._places[part]
        return f"{place}, row {first_row + position - int(self._ends[part]) + rows}"


class BlockBuilder:
    """Builder of blocks from tables."""

    def __init__(self, layout: Layout, count_unknown: Callable[[str, int], None]) -> None:
        """``count_unknown`` is called with a feature and the number of its ids that were out of range and read as 0."""
        self._layout = layout
        self._selection = layout.selection
        self._count_unknown = count_unknown
        self._dtype = id_dtype(self._selection.vocabulary_sizes)

    def build(self, sources: Sources, order: NDArray[np.int64] | None = None) -> DecodedBlock:
        """Return a block of the rows of ``sources`` with row ``order[i]`` at position i; in file order without ``order``.

        Raises :class:`UserError` for an id, a label, a weight or a number that is not allowed.
        """
        selection, rows = self._selection, sources.rows
        singles = [feature for feature in selection.sparse if feature.name not in self._layout.lists]
        listed = [feature for feature in selection.sparse if feature.name in self._layout.lists]
        ids: Array = np.empty((len(singles), rows), self._dtype)
        complete = np.ones(len(singles), np.bool_)
        for position, feature in enumerate(singles):
            values, complete[position] = self._single(sources, feature)
            _place(values, order, ids[position])
        lists = [self._list(sources, feature, order) for feature in listed]
        dense, labels, limit = len(selection.dense), len(selection.labels), selection.dense_limit
        numbers: Array = np.empty((dense + 2 * labels, rows), np.float32)
        for position, feature in enumerate(selection.dense):
            _place(_dense(sources, self._column(sources, feature), feature, limit), order, numbers[position])
        weight = _weights(sources, selection.weight) if selection.weight is not None else None
        for position, label in enumerate(selection.labels, start=dense):
            if label.name in self._layout.absent:
                numbers[position] = 0
                numbers[position + labels] = 0
                continue
            values, null = _label(sources, label)
            _place(values, order, numbers[position])
            if weight is None and null is None:
                numbers[position + labels] = 1
            else:
                weights = np.ones(rows, np.float32) if weight is None else weight.astype(np.float32)
                if null is not None:
                    weights[null] = 0
                _place(weights, order, numbers[position + labels])
        carried = self._carried(sources, order) if self._layout.carried else None
        return DecodedBlock(ids, complete, lists, numbers, carried)

    def _carried(self, sources: Sources, order: NDArray[np.int64] | None) -> NDArray[np.int64]:
        carried: NDArray[np.int64] = np.empty((len(self._layout.carried), sources.rows), np.int64)
        for position, column in enumerate(self._layout.carried):
            parts = [encode(column, array, sources.row(first)) for array, first in sources.columns(column.column)]
            _place(_joined(parts, np.int64), order, carried[position])
        return carried

    def _column(self, sources: Sources, feature: FeatureSpec) -> Iterator[tuple[pa.Array, int]]:
        """Values of a feature that is no list, as from :meth:`Sources.columns`."""
        if feature.name not in self._selection.constants:
            return sources.columns(feature.source)
        type_ = pa.float64() if feature.kind == "dense" else pa.int64()
        return iter([(pa.repeat(pa.scalar(self._selection.constants[feature.name], type_), sources.rows), 0)])

    def _single(self, sources: Sources, feature: FeatureSpec) -> tuple[Array, bool]:
        """Ids in file order, and True if none is :data:`ABSENT`."""
        parts, complete = [], True
        for array, first in self._column(sources, feature):
            values, null = _integers(array)
            values = self._in_range(sources, feature, values, first)
            if null is not None:
                values = values.astype(self._dtype)
                values[null] = ABSENT
                complete = False
            parts.append(values)
        return _joined(parts, self._dtype), complete

    def _list(self, sources: Sources, feature: FeatureSpec, order: NDArray[np.int64] | None) -> Lists:
        id_parts, length_parts = [], []
        for array, first in sources.columns(feature.source):
            if pt.is_null(array.type):
                array = array.cast(pa.list_(pa.int32()))
            lengths = _numpy(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64)
            flat = array.flatten()  # omits null lists
            ends = np.cumsum(lengths)
            if flat.null_count:  # drop null elements: count the others up to each list's end
                stay = np.concatenate([[0], np.cumsum(_numpy(flat.is_valid()), dtype=np.int64)])
                lengths = stay[ends] - stay[ends - lengths]
                ends = np.cumsum(lengths)
                flat = flat.drop_null()
            values, _ = _integers(flat)
            values = self._in_range(sources, feature, values, first, ends)
            id_parts.append(values.astype(self._dtype, copy=False))
            length_parts.append(lengths)
        longest = self._selection.max_sequence_length if feature.kind == "sequence" else None
        return pick(_joined(id_parts, self._dtype), _joined(length_parts, np.int64), order, longest)

    def _in_range(
        self, sources: Sources, feature: FeatureSpec, values: Array, first: int, ends: Array | None = None
    ) -> Array:
        """Check the ids of the rows from ``first`` on; for lists, ``ends`` holds the end of each row's ids."""
        size = self._selection.vocabulary_sizes[feature.name]
        if size == ANY_ID:
            return any_ids(values)
        narrow = size > 1 << (8 * values.itemsize - 1)  # a negative id looks large, but not larger than this
        if len(values) == 0 or (not narrow and int(values.view(f"u{values.itemsize}").max()) < size):
            return values
        bad = (values < 0) | (values >= size)
        if not bad.any():
            return values
        if self._selection.out_of_range == "error":
            position = int(np.argmax(bad))
            row = position if ends is None else int(np.searchsorted(ends, position, side="right"))
            raise bad_id(sources.row(first + row), feature, values[position], size)
        self._count_unknown(feature.name, int(np.count_nonzero(bad)))
        return np.where(bad, values.dtype.type(0), values)


def any_ids(values: Array) -> Array:
    """Ids of 64 bits as int64; -1, which marks nulls, becomes the smallest int64, -2^63."""
    values = values.astype(np.int64, copy=False)
    absent = values == ABSENT
    return np.where(absent, np.iinfo(np.int64).min, values) if absent.any() else values


def id_dtype(vocabulary_sizes: dict[str, int]) -> type[np.int32] | type[np.int64]:
    """Narrowest of int32 and int64 that holds all ids."""
    return np.int32 if max(vocabulary_sizes.values(), default=1) <= 2**31 else np.int64


def _joined(parts: list[Array], dtype: Any) -> Array:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts, dtype=dtype, casting="unsafe") if parts else np.empty(0, dtype)


def _place(values: Array, order: NDArray[np.int64] | None, out: Array) -> None:
    """Write ``values[order]`` to ``out``, in the dtype of ``out``, which holds all values."""
    if order is None:
        out[:] = values
    else:  # the order is in range: clip only avoids the check and a copy
        np.take(values.astype(out.dtype, copy=False), order, out=out, mode="clip")


def pick(values: Array, lengths: Array, order: NDArray[np.int64] | None, longest: int | None) -> Lists:
    """Consecutive lists of ``values`` with ``lengths``, in ``order``, each cut to its last ``longest`` ids."""
    kept = lengths if longest is None else np.minimum(lengths, longest)
    short = kept is lengths or bool((kept == lengths).all())
    if order is None and longest is not None and not short:
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(values))  # ids from here to the list's end
        values = values[left <= longest]
    elif order is not None:
        import torchrec.sparse.jagged_tensor  # noqa: F401  (loads fbgemm's operators, which only training needs)

        # TorchRec's operator copies list by list, several times faster than gathering single ids.
        if short:
            index, segments = order, lengths
        else:  # every list as two: the dropped part and the kept part
            index, segments = 2 * order + 1, np.stack([lengths - kept, kept], axis=1).reshape(-1)
        values = torch.ops.fbgemm.permute_1D_sparse_data(
            torch.from_numpy(index.astype(np.int32)),
            torch.from_numpy(segments),
            torch.from_numpy(np.asarray(_Writable(values))),
            None,
            None,
        )[1].numpy()
        kept = kept[order]
    return Lists(values, np.concatenate([[0], np.cumsum(kept)]))


class _Writable:
    """An array that torch takes as writable. Arrow's buffers are not, and torch warns of them although nothing is written."""

    def __init__(self, array: Array) -> None:
        self.array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _numpy(array: pa.Array) -> Array:
    result: Array = array.to_numpy(zero_copy_only=False)
    return result


def _integers(array: pa.Array) -> tuple[Array, Array | None]:
    """Values (0 for null), and the mask of nulls if there are any."""
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pt.is_null(array.type):
        array = array.cast(pa.int32())
    if array.null_count == 0:
        return _numpy(array), None
    return _numpy(pc.fill_null(array, 0)), _numpy(array.is_null())


def _floats(column: Iterator[tuple[pa.Array, int]]) -> tuple[Array, Array | None]:
    """All values (0 for null) in the files' number type, and the mask of nulls if there are any."""
    parts, nulls = [], []
    for array, _ in column:
        if pt.is_decimal(array.type) or pt.is_null(array.type) or pt.is_boolean(array.type):
            array = array.cast(pa.uint8() if pt.is_boolean(array.type) else pa.float64())
        nulls.append(_numpy(array.is_null()) if array.null_count else np.zeros(len(array), np.bool_))
        if array.null_count:
            array = pc.fill_null(array, pa.scalar(0, array.type))
        parts.append(_numpy(array))
    null = _joined(nulls, np.bool_)
    values = parts[0] if len(parts) == 1 else _joined(parts, np.float64)
    return values, null if null.any() else None


def _dense(
    sources: Sources, column: Iterator[tuple[pa.Array, int]], feature: FeatureSpec, limit: float | None
) -> Array:
    values, null = _floats(column)
    out: Array = np.empty(len(values), np.float32)
    with np.errstate(over="ignore"):
        if isinstance(feature.statistics, DenseStatistics):
            # In double precision: the mean of a time stamp is large compared with its deviation.
            scaled = np.subtract(values, feature.statistics.mean, dtype=np.float64)
            np.divide(scaled, feature.statistics.std or 1.0, out=out, casting="same_kind")
        else:
            out[:] = values
    if null is not None:
        out[null] = 0
    finite = np.isfinite(out)
    if not finite.all():
        position = int(np.argmin(finite))
        raise bad_number(sources.row(position), feature.source, values[position])
    if limit is not None:
        np.clip(out, -limit, limit, out=out)
    return out


def _label(sources: Sources, label: LabelSpec) -> tuple[Array, Array | None]:
    values, null = _floats(sources.columns(label.source))
    if label.kind == "binary":
        good = (values == 0) | (values == 1)
        error: Callable[[str, str, Any], UserError] = bad_label
    else:
        with np.errstate(over="ignore"):
            good = np.isfinite(values.astype(np.float32, copy=False))
        error = bad_number
    if not good.all():
        position = int(np.argmin(good))
        raise error(sources.row(position), label.source, values[position])
    return values, null


def _weights(sources: Sources, column: str) -> Array:
    values, null = _floats(sources.columns(column))
    good = np.isfinite(values) & (values >= 0)
    if null is not None:
        good &= ~null
    if not good.all():
        position = int(np.argmin(good))
        raise bad_weight(
            sources.row(position), column, "null" if null is not None and null[position] else values[position]
        )
    return values
