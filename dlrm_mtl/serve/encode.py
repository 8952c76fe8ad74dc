"""Encoding of rows for the model: the reader's transforms, and policies for missing fields and unknown ids."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.chosen_columns import Selection
from dlrm_mtl.data.decode import BlockBuilder, DecodedBlock, Sources
from dlrm_mtl.data.file_checks import Layout, is_list
from dlrm_mtl.data.join_rows import BlockRows, Joined, join
from dlrm_mtl.data.spec import FeatureSpec
from dlrm_mtl.serve.quick_columns import QuickColumns, quick_columns
from dlrm_mtl.serve.raw.reader import RawReader
from dlrm_mtl.serve.rows import Columns, Rows, Where, check_mappings, columns_of, table_of

Policy = Literal["refuse", "default", "unknown"]
"""``refuse``: an error. ``default``: as for null in the data, no vector for an id and the mean for a number. ``unknown``:
id 0, which means unknown; as ``default`` for a number."""
Policies = Policy | Mapping[str, Policy]
"""One policy for all features, or policies by feature; ``*`` stands for features without an entry."""
LAYOUTS = 64
"""Number of layouts that an encoder keeps."""
MISSING: Policy = "refuse"
"""Default policy for missing fields."""


@dataclass(frozen=True)
class Encoded:
    """Rows with checked values."""

    layout: Layout
    block: DecodedBlock | None
    rows: int
    """Number of rows; with 0 rows there is no block."""

    def parts(self, rows: int) -> Iterator[Joined]:
        """Parts of up to ``rows`` rows."""
        for start in range(0, self.rows, rows):
            assert self.block is not None
            yield join(self.layout, [BlockRows(self.block, start, min(start + rows, self.rows))])


class RowEncoder:
    """Encoder of rows as ids and numbers, with the transforms of the training data's reader.

    Args:
        selection: features that the model reads.
        row_of: functions from unbounded ids [N] int64 to rows [N], 0 for ids without a row; by vocabulary.
        vocabularies: vocabulary of each feature with unbounded ids.
        missing: policies for missing fields. A null is not a missing field: the training data may hold it, too.
        unknown: policies for ids outside their vocabulary, or without a row; default: according to `data.out_of_range`. For
            raw rows: policies for values that the vocabulary lacks; default: ``unknown``, as in `prepare`.
        raw: reader of raw rows; None for rows of the prepared data set.
    """

    def __init__(
        self,
        selection: Selection,
        row_of: Mapping[str, Callable[[Tensor], Tensor]],
        vocabularies: Mapping[str, str],
        missing: Policies | None = None,
        unknown: Policies | None = None,
        raw: RawReader | None = None,
    ) -> None:
        self._raw = raw
        read = [each for each in (*selection.sparse, *selection.dense) if each.name not in selection.constants]
        self._read = read if raw is None else raw.fields(read)
        names = [feature.name for feature in self._read]
        self.missing = _by_feature(missing, dict.fromkeys(names, MISSING), "missing")
        strict = selection.out_of_range == "error"  # new ids are expected in unbounded vocabularies
        defaults: dict[str, Policy] = {
            feature.name: "refuse"
            if strict and feature.name not in vocabularies and not (raw and raw.numbers(feature.name))
            else "unknown"
            for feature in selection.sparse
            if feature.name in names
        }
        self.unknown = _by_feature(unknown, defaults, "unknown")
        self._row_of, self._vocabularies = row_of, vocabularies
        # From here on, columns have the names of their features: two features may read one column.
        self._selection = replace(
            selection,
            sparse=tuple(feature.model_copy(update={"column": None}) for feature in selection.sparse),
            dense=tuple(feature.model_copy(update={"column": None}) for feature in selection.dense),
            labels=(),
            weight=None,
            out_of_range="unknown",
        )
        self._bounded = [feature for feature in self._read if feature.name not in vocabularies]
        self._layouts: dict[frozenset[str], Layout] = {}
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {"missing": Counter(), "unknown": Counter()}
        self._prepared: RowEncoder | None = None
        """Encoder of the columns that the reader of raw rows makes; it has the same counts."""
        if raw is not None:
            self._prepared = RowEncoder(self._selection, row_of, vocabularies, None, self.unknown)
            self._prepared._counts, self._prepared._lock = self._counts, self._lock

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of fields and ids that a policy was applied to so far, by ``missing`` and ``unknown``, then by feature."""
        with self._lock:
            return {what: dict(counter) for what, counter in self._counts.items()}

    @property
    def fields(self) -> frozenset[str]:
        """Fields of a row that are read."""
        return frozenset(feature.source for feature in self._read)

    @property
    def features(self) -> list[tuple[FeatureSpec, dict[str, str]]]:
        """Features with their policies for a ``missing`` field and, where they have ids, an ``unknown`` id."""
        policies = {"missing": self.missing, "unknown": self.unknown}
        return [
            (each, {what: by[each.name] for what, by in policies.items() if each.name in by}) for each in self._read
        ]

    @property
    def keys(self) -> list[str]:
        """Names of the features with ids, in the order of the encoding."""
        return self._selection.keys

    @property
    def dense(self) -> list[str]:
        """Names of the features with numbers, in the order of the encoding."""
        return [feature.name for feature in self._selection.dense]

    def within(self, fields: Container[str]) -> frozenset[str]:
        """Names of the features that read ``fields``."""
        return frozenset(feature.name for feature in self._read if feature.source in fields)

    def part(self, names: frozenset[str]) -> RowEncoder:
        """Encoder of the features ``names``, with the same policies and counts."""
        part = copy(self)
        part._read = [feature for feature in self._read if feature.name in names]
        part._bounded = [feature for feature in self._bounded if feature.name in names]
        part._layouts = {}
        part._prepared = self._prepared.part(names) if self._prepared is not None else None
        part._selection = replace(
            self._selection,
            sparse=tuple(feature for feature in self._selection.sparse if feature.name in names),
            dense=tuple(feature for feature in self._selection.dense if feature.name in names),
        )
        return part

    def encode(self, rows: Rows, where: Where, times: int = 1) -> Encoded:
        """Ids and numbers of ``rows``, which are from ``where``.

        Args:
            rows: rows, see :meth:`~dlrm_mtl.serve.scorer.Scorer.score`.
            where: their origin, for errors.
            times: number of rows that a row stands for, for the counts.

        Raises:
            UserError: a row, or a value in it, is not allowed.
        """
        if self._prepared is not None and self._read:  # a table without columns has no rows
            made, seen, _ = self.columns(rows, where)
            self._count(seen, times)
            return self._prepared.encode(pa.table(made), where, times)
        table = table_of(rows)
        count = len(rows) if table is None else table.num_rows
        rows = rows if table is None else table
        plain = check_mappings(rows, where) if table is None else len(set(table.column_names)) == table.num_columns
        quick = quick_columns(rows, self._bounded, self._selection) if count and plain else QuickColumns()
        known = quick.names
        columns = self._columns(rows, [feature for feature in self._read if feature.name not in known], where, times)
        lists = {name for name, column in columns.items() if is_list(column.type)}
        layout = self._layout(frozenset(lists | quick.lists.keys()))
        if not count:
            return Encoded(layout, None, 0)
        slow = None
        if len(known) < len(self._selection.sparse) + len(self._selection.dense):
            rest = replace(
                self._selection,
                sparse=tuple(feature for feature in self._selection.sparse if feature.name not in known),
                dense=tuple(feature for feature in self._selection.dense if feature.name not in known),
            )
            builder = BlockBuilder(Layout(rest, layout.lists), _none_unknown)
            slow = builder.build(Sources([pa.table(columns)], [(count, where.name, where.first)]))
        return Encoded(layout, _merged(layout, quick, slow, count), count)

    def _layout(self, lists: frozenset[str]) -> Layout:
        """Layout of rows in which these features and no others hold lists; made once."""
        layout = self._layouts.get(lists)
        if layout is None:
            layout = Layout(self._selection, lists & frozenset(self.keys))
            if len(self._layouts) < LAYOUTS:
                self._layouts[lists] = layout
        return layout

    def _columns(self, rows: Rows, features: Sequence[FeatureSpec], where: Where, times: int) -> dict[str, pa.Array]:
        """Columns of ``features`` after the policies, which are counted."""
        if not features:
            return {}
        columns, seen, _ = self.columns(rows, where, features)
        for feature in features:
            if feature.kind != "dense":
                columns[feature.name], unknown = self._known(feature, columns[feature.name], where)
                seen["unknown"][feature.name] += unknown
        self._count(seen, times)
        return columns

    def _count(self, seen: Mapping[str, Counter[str]], times: int) -> None:
        """Count fields and ids that a policy was applied to, each ``times`` times."""
        with self._lock:
            for what, counter in seen.items():
                self._counts[what].update({name: number * times for name, number in counter.items() if number * times})

    def columns(self, rows: Rows, where: Where, features: Sequence[FeatureSpec] | None = None) -> Columns:
        """Columns of the prepared data set, with missing fields filled according to their policies.

        Args:
            rows: rows, see :meth:`~dlrm_mtl.serve.scorer.Scorer.score`.
            where: their origin, for errors.
            features: features to read; default: all of this encoder.

        Raises:
            UserError: a row, or a value in it, is not allowed.
        """
        features = self._read if features is None else features
        if self._raw is not None:
            return self._raw.read(rows, features, where, self.missing, self.unknown)
        found, absent, count = columns_of(rows, features, where)
        seen: dict[str, Counter[str]] = {"missing": Counter(), "unknown": Counter()}
        columns = {}
        for feature in features:
            column = found.get(feature.name)
            mask = absent.get(feature.name)
            if mask is not None:
                column = self._filled(feature, column, mask, where)
                seen["missing"][feature.name] += int(mask.sum())
            assert column is not None
            columns[feature.name] = column
        return columns, seen, count

    def _filled(self, feature: FeatureSpec, column: pa.Array | None, mask: NDArray[np.bool_], where: Where) -> pa.Array:
        """The column with missing fields filled according to the policy."""
        policy = self.missing[feature.name]
        if policy == "refuse":
            row = int(np.argmax(mask))
            raise UserError(
                f"{where.row(row)}: there is no field {feature.source!r}, which feature {feature.name!r} reads; add it "
                "(null where it has no value), or set a policy for missing fields."
            )
        if column is None:
            listed = feature.kind == "sequence"
            empty = pa.list_(pa.int64()) if listed else pa.float64() if feature.kind == "dense" else pa.int64()
            column = pa.nulls(len(mask), empty)
        if policy == "default" or feature.kind == "dense":
            return column
        zero: Any = [0] if is_list(column.type) else 0
        return pc.if_else(pa.array(mask), pa.scalar(zero, column.type), column)

    def _known(self, feature: FeatureSpec, column: pa.Array, where: Where) -> tuple[pa.Array, int]:
        """The column with unknown ids, or ids without a row, replaced according to the policy; and their number."""
        listed = is_list(column.type)
        if listed and not pa.types.is_list(column.type):
            column = column.cast(pa.list_(column.type.value_type))
        flat = column.flatten() if listed else column
        valid = flat.is_valid().to_numpy(zero_copy_only=False)
        values = pc.fill_null(flat, 0).to_numpy(zero_copy_only=False)
        vocabulary = self._vocabularies.get(feature.name)
        if vocabulary is not None:
            ids = values.astype(np.int64)
            ids[ids == -1] = np.iinfo(np.int64).min  # as in the reader
            rows = self._row_of[vocabulary](torch.from_numpy(ids)).numpy() if len(ids) else ids
            bad, known, span = valid & (rows == 0) & (ids != 0), rows, ""
        else:
            size = self._selection.vocabulary_sizes[feature.name]
            bad, known, span = valid & ((values < 0) | (values >= size)), values, f" (it knows 0..{size - 1})"
        count = int(np.count_nonzero(bad))
        if not count and vocabulary is None:
            return column, 0
        policy = self.unknown[feature.name]
        if count and policy == "refuse":
            at = int(np.argmax(bad))
            row = _row_of_element(column, at) if listed else at
            raise UserError(
                f"{where.row(row)}: {feature.source!r} holds the id {values[at]}, which feature {feature.name!r} does not know"
                f"{span}; correct it, or set a policy for unknown ids."
            )
        known = np.where(bad, 0, known).astype(np.int64)
        null = ~valid | bad if policy == "default" else ~valid
        flat = pa.array(known, mask=null if null.any() else None)
        if not listed:
            return flat, count
        return _with_values(column, flat), count


def _merged(layout: Layout, quick: QuickColumns, slow: DecodedBlock | None, count: int) -> DecodedBlock:
    """One block of the columns of both, in the order of ``layout``."""
    singles = [feature.name for feature in layout.selection.sparse if feature.name not in layout.lists]
    dense = [feature.name for feature in layout.selection.dense]
    complete = np.array([name not in quick.incomplete for name in singles], np.bool_)
    ids, numbers = quick.id_rows, quick.number_rows
    if ids is None or len(ids) < len(singles):
        ids = np.empty((len(singles), count), np.int64)
        rest = iter(zip(slow.ids, slow.complete, strict=True) if slow else ())
        for position, name in enumerate(singles):
            if name in quick.ids:
                ids[position] = quick.ids[name]
            else:
                ids[position], complete[position] = next(rest)
    if numbers is None or len(numbers) < len(dense):
        others = iter(slow.numbers if slow else ())
        rows = [quick.numbers[name] if name in quick.numbers else next(others) for name in dense]
        numbers = np.stack(rows) if rows else np.empty((0, count), np.float32)
    listed = iter(slow.lists if slow else ())
    names = [feature.name for feature in layout.selection.sparse if feature.name in layout.lists]
    lists = [quick.lists[name] if name in quick.lists else next(listed) for name in names]
    return DecodedBlock(ids, complete, lists, numbers)


def _row_of_element(lists: pa.Array, position: int) -> int:
    """Row of the element number ``position`` of all lists."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return int(np.searchsorted(np.cumsum(lengths), position, side="right"))


def _with_values(lists: pa.Array, values: pa.Array) -> pa.Array:
    """Lists with the lengths of ``lists`` and other values; nulls become empty lists."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _none_unknown(feature: str, count: int) -> None:
    raise AssertionError(f"{feature}: {count} ids out of range")


def _by_feature(policies: Policies | None, defaults: dict[str, Policy], what: str) -> dict[str, Policy]:
    """Policy of every feature."""
    given: Mapping[str, Policy] = {"*": policies} if isinstance(policies, str) else policies or {}
    for name, policy in given.items():
        if name != "*" and name not in defaults:
            raise UserError(f"{what}: there is no feature {name!r} to which this applies; {suggest(name, defaults)}.")
        if policy not in get_args(Policy):
            raise UserError(f"{what}: {name}: {policy!r} is not a policy; choose refuse, default or unknown.")
    return {name: given.get(name, given.get("*", otherwise)) for name, otherwise in defaults.items()}
