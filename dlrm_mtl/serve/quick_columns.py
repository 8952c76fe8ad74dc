"""Columns of rows whose values need no closer look, as NumPy arrays: the short way from a request to the model's input.

It gives the numbers that the reader's way gives, or nothing: a value that is missing, unknown, of another type or too large
is left to :mod:`dlrm_mtl.serve.encode`, which applies policies and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from dlrm_mtl.data.decode import Array, Lists, pick
from dlrm_mtl.data.file_checks import is_list
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

    ids: dict[str, Plain] = field(default_factory=dict)
    """Single ids, all in the vocabulary or null."""
    lists: dict[str, Lists] = field(default_factory=dict)
    """Lists of such ids."""
    numbers: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Standardised numbers."""

    def __contains__(self, name: str) -> bool:
        """True if this feature was converted."""
        return name in self.ids or name in self.lists or name in self.numbers


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
    read = _TableReader(rows) if isinstance(rows, pa.Table) else _DictReader(rows)
    numbers: list[tuple[FeatureSpec, Plain]] = []
    singles: list[tuple[FeatureSpec, Plain]] = []
    for feature in features:
        plain = read(feature)
        if plain is None:
            continue
        if feature.kind == "dense":
            numbers.append((feature, plain))
        elif plain.lengths is None:
            singles.append((feature, plain))
        elif not len(plain.values) or (
            plain.values.min() >= 0 and plain.values.max() < selection.vocabulary_sizes[feature.name]
        ):
            longest = selection.max_sequence_length if feature.kind == "sequence" else None
            found.lists[feature.name] = pick(plain.values, plain.lengths, None, longest)
    found.ids = _known(singles, selection)
    found.numbers = _standardised(numbers, selection.dense_limit)
    return found


def _known(singles: Sequence[tuple[FeatureSpec, Plain]], selection: Selection) -> dict[str, Plain]:
    """Columns whose ids are all in the vocabulary."""
    if not singles:
        return {}
    # [features, N]; a number of 64 bits without a sign may become negative, and is then not in the vocabulary.
    ids = np.stack([plain.values for _, plain in singles], dtype=np.int64, casting="unsafe")
    sizes = np.array([selection.vocabulary_sizes[feature.name] for feature, _ in singles]).reshape(-1, 1)
    good: NDArray[np.bool_] = np.all((ids >= 0) & (ids < sizes), axis=1)
    found = zip(singles, ids, good, strict=True)
    return {feature.name: Plain(row, plain.null) for (feature, plain), row, fine in found if fine}


def _standardised(numbers: Sequence[tuple[FeatureSpec, Plain]], limit: float | None) -> dict[str, NDArray[np.float32]]:
    """Numbers as the reader gives them, of columns in which they are all finite."""
    if not numbers:
        return {}
    values = np.stack([plain.values for _, plain in numbers], dtype=np.float64, casting="unsafe")  # [features, N]
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
    return {feature.name: row for (feature, _), row, fine in zip(numbers, out, finite, strict=True) if fine}


class _TableReader:
    """Reads columns of a table."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._places = {name: number for number, name in enumerate(table.column_names)}

    def __call__(self, feature: FeatureSpec) -> Plain | None:
        """The column of a feature; None if it needs a closer look."""
        place = self._places.get(feature.source)
        if place is None:
            return None
        chunks = self._table.column(place)
        if chunks.num_chunks != 1:
            return None
        column = chunks.chunk(0)
        type_ = column.type
        if pt.is_integer(type_):
            exact = feature.kind != "dense" or isinstance(feature.statistics, DenseStatistics)
            return (
                _plain(column) if exact and feature.kind != "sequence" else None
            )  # others are rounded once, not twice
        if pt.is_floating(type_):
            return _plain(column) if feature.kind == "dense" else None
        if feature.kind == "dense" or not is_list(type_) or not pt.is_integer(type_.value_type) or column.null_count:
            return None
        flat = column.flatten()
        if flat.null_count:
            return None
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
        return Plain(flat.to_numpy(zero_copy_only=False), None, lengths)


def _plain(column: pa.Array) -> Plain:
    if not column.null_count:
        return Plain(column.to_numpy(), None)
    null = column.is_null().to_numpy(zero_copy_only=False)
    return Plain(pc.fill_null(column, pa.scalar(0, column.type)).to_numpy(), null)


class _DictReader:
    """Reads fields of dicts."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def __call__(self, feature: FeatureSpec) -> Plain | None:
        """The values of a feature; None if they need a closer look."""
        try:
            values = list(map(itemgetter(feature.source), self._rows))
            types = set(map(type, values))
            if feature.kind == "dense":
                return _numbers(values, types)
            if types <= {int, NoneType} and feature.kind == "sparse":
                return _ids(values, types)
            if types == {list}:
                flat = list(chain.from_iterable(values))
                if set(map(type, flat)) <= {int}:
                    lengths = np.fromiter(map(len, values), np.int64, len(values))
                    return Plain(np.array(flat, np.int64), None, lengths)
        except (KeyError, OverflowError):
            pass
        return None


def _numbers(values: list[Any], types: set[type]) -> Plain | None:
    if not types <= {int, float, NoneType}:
        return None
    return Plain(np.array(values, np.float64), _nulls(values, types))


def _ids(values: list[Any], types: set[type]) -> Plain:
    null = _nulls(values, types)
    whole = values if null is None else [value or 0 for value in values]
    return Plain(np.array(whole, np.int64), null)


def _nulls(values: list[Any], types: set[type]) -> NDArray[np.bool_] | None:
    return np.array([value is None for value in values]) if NoneType in types else None
