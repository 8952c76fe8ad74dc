"""Columns of rows whose values need no closer look, as NumPy arrays: the short way from a request to the model's input.

It gives the numbers that the reader's way gives, or nothing: a value that is missing, unknown, of another type or too large
is left to :mod:`dlrm_mtl.serve.encode`, which applies policies and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from dlrm_mtl.data.chosen_columns import Selection
from dlrm_mtl.data.decode import ABSENT, Array, Lists, pick
from dlrm_mtl.data.spec import DenseStatistics, FeatureSpec


class Plain(NamedTuple):
    """Values of a column, or of all its lists."""

    values: Array
    """Integers or numbers, 0 or nan where null."""
    null: NDArray[np.bool_] | None
    """Mask of nulls, if there are any; none in lists."""
    lengths: NDArray[np.int64] | None = None
    """Lengths of the lists; None for a column of single values."""


@dataclass
class QuickColumns:
    """Columns that were converted, by feature."""

    ids: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Single ids [N], all in the vocabulary, or :data:`~dlrm_mtl.data.decode.ABSENT` where null."""
    incomplete: set[str] = field(default_factory=set)
    """Those of them with nulls."""
    lists: dict[str, Lists] = field(default_factory=dict)
    """Lists of such ids."""
    numbers: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Standardised numbers [N]."""
    id_rows: NDArray[np.int64] | None = None
    """[features, N]: all of ``ids`` in order, if no column was left out."""
    number_rows: NDArray[np.float32] | None = None
    """[features, N]: all of ``numbers`` in order, if no column was left out."""

    @property
    def names(self) -> set[str]:
        """Features that were converted."""
        return {*self.ids, *self.lists, *self.numbers}


def quick_columns(
    rows: pa.Table | Sequence[dict[str, Any]], features: Sequence[FeatureSpec], selection: Selection
) -> QuickColumns:
    """The columns of ``rows`` that need no closer look.

    Args:
        rows: a table whose columns have different names, or dicts.
        features: features to convert; their ids are in vocabularies of a known size.
        selection: sizes and limits.
    """
    found = QuickColumns()
    read = _of_table(rows, features) if isinstance(rows, pa.Table) else _of_dicts(rows, features)
    numbers: list[tuple[FeatureSpec, Plain]] = []
    singles: list[tuple[FeatureSpec, Plain]] = []
    for feature, plain in read:
        if feature.kind == "dense":
            numbers.append((feature, plain))
        elif plain.lengths is None:
            singles.append((feature, plain))
        elif not len(plain.values) or (
            plain.values.min() >= 0 and plain.values.max() < selection.vocabulary_sizes[feature.name]
        ):
            longest = selection.max_sequence_length if feature.kind == "sequence" else None
            found.lists[feature.name] = pick(plain.values, plain.lengths, None, longest)
    if singles:
        _add_ids(found, singles, selection)
    if numbers:
        _add_numbers(found, numbers, selection.dense_limit)
    return found


def _add_ids(found: QuickColumns, singles: Sequence[tuple[FeatureSpec, Plain]], selection: Selection) -> None:
    """Add the columns whose ids are all in the vocabulary."""
    # A number of 64 bits without a sign may become negative, and is then not in the vocabulary.
    ids = _rows([plain.values for _, plain in singles], np.int64)
    sizes = np.array([selection.vocabulary_sizes[feature.name] for feature, _ in singles]).reshape(-1, 1)
    good: NDArray[np.bool_] = np.all((ids >= 0) & (ids < sizes), axis=1)
    for (feature, plain), row, fine in zip(singles, ids, good.tolist(), strict=True):  # type: ignore[arg-type]
        if fine:
            found.ids[feature.name] = row
            if plain.null is not None:
                row[plain.null] = ABSENT
                found.incomplete.add(feature.name)
    found.id_rows = ids if len(found.ids) == len(singles) else None


def _add_numbers(found: QuickColumns, numbers: Sequence[tuple[FeatureSpec, Plain]], limit: float | None) -> None:
    """Add the columns in which all numbers are finite, as the reader gives them."""
    values = _rows([plain.values for _, plain in numbers], np.float64)
    statistics = [feature.statistics for feature, _ in numbers]
    means = [each.mean if isinstance(each, DenseStatistics) else 0.0 for each in statistics]
    stds = [(each.std or 1.0) if isinstance(each, DenseStatistics) else 1.0 for each in statistics]
    out: NDArray[np.float32] = np.empty(values.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        np.subtract(values, np.reshape(means, (-1, 1)), out=values)
        np.divide(values, np.reshape(stds, (-1, 1)), out=out, casting="same_kind")
    for row, (_, plain) in zip(out, numbers, strict=True):
        if plain.null is not None:
            row[plain.null] = 0
    finite: NDArray[np.bool_] = np.all(np.isfinite(out), axis=1)
    if limit is not None:
        np.clip(out, -limit, limit, out=out)
    found.numbers = {feature.name: row for (feature, _), row, fine in zip(numbers, out, finite, strict=True) if fine}
    found.number_rows = out if len(found.numbers) == len(numbers) else None


def _rows(columns: Sequence[Array], dtype: type[np.generic]) -> Array:
    """[columns, N]: the columns in this type; np.stack takes several times as long for short ones."""
    rows: Array = np.empty((len(columns), len(columns[0])), dtype)
    for row, column in zip(rows, columns, strict=True):
        row[...] = column
    return rows


def _of_table(table: pa.Table, features: Sequence[FeatureSpec]) -> Iterator[tuple[FeatureSpec, Plain]]:
    """Columns of a table."""
    batches = table.to_batches()
    if len(batches) != 1:
        return
    schema = table.schema
    places = {name: number for number, name in enumerate(schema.names)}
    types, columns = schema.types, batches[0].columns
    for feature in features:
        place = places.get(feature.source)
        if place is None:
            continue
        plain = _column(columns[place], types[place], feature)
        if plain is not None:
            yield feature, plain


def _column(column: pa.Array, type_: pa.DataType, feature: FeatureSpec) -> Plain | None:
    """The values of a feature; None if they need a closer look."""
    if pt.is_integer(type_):
        exact = feature.kind != "dense" or isinstance(feature.statistics, DenseStatistics)
        return _plain(column) if exact and feature.kind != "sequence" else None  # others are rounded once, not twice
    if pt.is_floating(type_):
        return _plain(column) if feature.kind == "dense" else None
    if feature.kind == "dense" or not (pt.is_list(type_) and pt.is_integer(type_.value_type)):
        return None
    flat = column.flatten()  # omits null lists
    if flat.null_count:
        return None
    lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
    if column.null_count:
        lengths[column.is_null().to_numpy(zero_copy_only=False)] = 0
    return Plain(flat.to_numpy(), None, lengths)


def _plain(column: pa.Array) -> Plain:
    if not column.null_count:
        return Plain(column.to_numpy(), None)
    null = column.is_null().to_numpy(zero_copy_only=False)
    return Plain(pc.fill_null(column, pa.scalar(0, column.type)).to_numpy(), null)


def _of_dicts(rows: Sequence[dict[str, Any]], features: Sequence[FeatureSpec]) -> list[tuple[FeatureSpec, Plain]]:
    """Fields of dicts; those with values of one type are converted together."""
    found: list[tuple[FeatureSpec, Plain]] = []
    ids: list[FieldValues] = []
    numbers: list[FieldValues] = []
    for feature, values in _fields(rows, features):
        types = set(map(type, values))
        if feature.kind == "dense":
            if types <= {int, float, NoneType}:
                numbers.append((feature, values, _nulls(values, types)))
        elif feature.kind == "sparse" and types <= {int, NoneType}:
            null = _nulls(values, types)
            ids.append((feature, values if null is None else [value or 0 for value in values], null))
        elif types <= {list, NoneType}:
            lists = values if NoneType not in types else [value or [] for value in values]  # null is an empty list
            flat = list(chain.from_iterable(lists))
            array = _array(flat, np.int64) if set(map(type, flat)) <= {int} else None
            if array is not None:
                found.append((feature, Plain(array, None, np.fromiter(map(len, lists), np.int64, len(lists)))))
    return found + _together(ids, np.int64) + _together(numbers, np.float64)


FieldValues = tuple[FeatureSpec, Sequence[Any], NDArray[np.bool_] | None]
"""A feature, its values, and the mask of nulls if there are any."""


def _fields(
    rows: Sequence[dict[str, Any]], features: Sequence[FeatureSpec]
) -> Iterable[tuple[FeatureSpec, Sequence[Any]]]:
    """The features whose fields all rows have, and their values."""
    present = list(features)
    try:
        tuples = list(map(itemgetter(*[feature.source for feature in present]), rows)) if len(present) > 1 else None
    except KeyError:
        tuples = None
    if tuples is None:
        present = [feature for feature in present if all(feature.source in row for row in rows)]
        return [(feature, [row[feature.source] for row in rows]) for feature in present]
    return zip(present, zip(*tuples, strict=True), strict=True)


def _together(fields: Sequence[FieldValues], dtype: type[np.generic]) -> list[tuple[FeatureSpec, Plain]]:
    """The fields as arrays, converted at once; singly if a number is too large, without those that have one."""
    if not fields:
        return []
    whole = _array([values for _, values, _ in fields], dtype)
    if whole is None and len(fields) > 1:
        return [each for field in fields for each in _together([field], dtype)]
    if whole is None:
        return []
    return [(feature, Plain(row, null)) for (feature, _, null), row in zip(fields, whole, strict=True)]


def _array(values: Sequence[Any], dtype: type[np.generic]) -> Array | None:
    try:
        return np.array(values, dtype)
    except OverflowError:
        return None


def _nulls(values: Sequence[Any], types: set[type]) -> NDArray[np.bool_] | None:
    return np.array([value is None for value in values]) if NoneType in types else None
