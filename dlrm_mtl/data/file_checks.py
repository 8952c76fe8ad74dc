"""Checks of Parquet files before any row is read: columns, types, and footer statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.carried_columns import CarriedColumn
from dlrm_mtl.data.chosen_columns import ANY_ID, Selection
from dlrm_mtl.data.dataset import DataFile
from dlrm_mtl.data.parquet_guard import CONTRADICTION, examining, unreadable
from dlrm_mtl.data.spec import FeatureSpec


@dataclass(frozen=True)
class Layout:
    """Layout of the selected columns in the given files."""

    selection: Selection
    lists: frozenset[str]
    """Names of the sparse and sequence features whose column holds lists; the others hold single ids."""
    absent: frozenset[str] = frozenset()
    """Names of the labels that the files lack (in prediction)."""
    carried: tuple[CarriedColumn, ...] = ()
    """Columns that are read beside the inputs."""

    @cached_property
    def runs(self) -> list[range | int]:
        """The keys in order: a range of consecutive columns of single ids, or the number of a column of lists."""
        runs: list[range | int] = []
        single = listed = 0
        for feature in self.selection.sparse:
            if feature.name in self.lists:
                runs.append(listed)
                listed += 1
            else:
                last = runs.pop() if runs and isinstance(runs[-1], range) else range(single, single)
                assert isinstance(last, range)
                single += 1
                runs.append(range(last.start, single))
        return runs

    @property
    def columns(self) -> list[str]:
        """Parquet columns to read, each once."""
        weight = [self.selection.weight] if self.selection.weight is not None else []
        labels = [label.source for label in self.selection.labels if label.name not in self.absent]
        carried = [each.column for each in self.carried]
        return list(dict.fromkeys([*self.selection.feature_columns, *labels, *weight, *carried]))


def check_files(
    files: Sequence[DataFile],
    selection: Selection,
    *,
    labels_required: bool = True,
    carried: Sequence[CarriedColumn] = (),
) -> Layout:
    """Check schemas and footer statistics of ``files`` (at least one) against ``selection``.

    Raises :class:`UserError` for a missing column, a column of the wrong type, and for a wrong label, id or number in the
    footer statistics. Files without statistics are checked when they are read.
    """
    typed = _typed_in_one(files, selection)
    layouts = [_check_schema(file, selection, labels_required, typed) for file in files]
    first = layouts[0]
    for file, layout in zip(files, layouts, strict=True):
        if layout != first:
            odd = min((layout.lists ^ first.lists) | (layout.absent ^ first.absent))
            sources = {feature.name: feature.source for feature in selection.sparse}
            sources |= {label.name: label.source for label in selection.labels}
            here, there = (_shown_type(one, sources[odd]) for one in (file, files[0]))
            raise UserError(
                f"{file.path}: column of {odd!r} differs from that in {files[0].path} ({here} here, {there} there); write both "
                "in the same way."
            )
        with examining(file.path):
            _check_statistics(file, first)
        check_carried(file, carried)
    return replace(first, carried=tuple(carried))


def check_carried(file: DataFile, carried: Sequence[CarriedColumn]) -> None:
    """Check that ``file`` has the columns, with types that fit; raises :class:`UserError`."""
    for each in carried:
        type_ = _type(file, file.schema, each.column, each.reader)
        if not each.encoder.accepts(type_):
            raise UserError(
                f"{file.path}: column {each.column!r} has type {type_}, and {each.reader} needs {each.encoder.wanted}; name "
                "another column."
            )


def bad_id(place: str, feature: FeatureSpec, value: Any, size: int) -> UserError:
    """Error for an id outside its vocabulary."""
    return UserError(
        f"{place}: column {feature.source!r} holds the id {value}, outside the vocabulary 0..{size - 1} of feature "
        f"{feature.name!r}; correct the file, raise vocabulary_size in dataset.yaml, or set data.out_of_range to unknown."
    )


def bad_label(place: str, column: str, value: Any) -> UserError:
    """Error for a value of a binary label that is neither 0 nor 1."""
    return UserError(
        f"{place}: label column {column!r} holds {value:g}, which is neither 0 nor 1; correct the file (null marks a missing "
        "label), or make the label's kind real in dataset.yaml."
    )


def bad_number(place: str, column: str, value: Any) -> UserError:
    """Error for a number that is not finite."""
    return UserError(
        f"{place}: column {column!r} holds {value}, which is no finite number; correct the file (null marks what is missing)."
    )


def bad_weight(place: str, column: str, value: Any) -> UserError:
    """Error for a row weight that is null, negative or not finite."""
    return UserError(
        f"{place}: weight column {column!r} holds {value}; a weight must be a finite number of at least 0: correct the file."
    )


def _typed_in_one(files: Sequence[DataFile], selection: Selection) -> dict[str, pa.DataType]:
    """Types of id columns that are untyped in some file: pyarrow writes a column of only nulls without a type."""
    typed: dict[str, pa.DataType] = {}
    for column in {feature.source for feature in selection.sparse if feature.name not in selection.constants}:
        types = [file.schema.field(column).type for file in files if file.columns[column] == 1]
        if any(pt.is_null(type_) for type_ in types):
            typed[column] = next((type_ for type_ in types if not pt.is_null(type_)), pa.null())
    return typed


def _shown_type(file: DataFile, column: str) -> str:
    return str(file.schema.field(column).type) if column in file.columns else "missing"


def _check_schema(file: DataFile, selection: Selection, labels_required: bool, typed: dict[str, pa.DataType]) -> Layout:
    schema = file.schema
    lists = set()
    for feature in selection.sparse:
        if feature.name in selection.constants:
            continue
        type_ = _type(file, schema, feature.source, f"{feature.kind} feature {feature.name!r}")
        if pt.is_null(type_):
            type_ = typed.get(feature.source, type_)
        if is_list(type_) and _is_id(type_.value_type):
            lists.add(feature.name)
        elif feature.kind == "sequence" or not _is_id(type_):
            wanted = "a list of integers" if feature.kind == "sequence" else "an integer or a list of integers"
            raise _wrong_type(file, feature.source, type_, wanted)
    for feature in selection.dense:
        if feature.name not in selection.constants:
            _expect_number(file, feature.source, _type(file, schema, feature.source, f"dense feature {feature.name!r}"))
    absent = set()
    for label in selection.labels:
        if label.source not in file.columns and not labels_required:
            absent.add(label.name)
        else:
            _expect_number(file, label.source, _type(file, schema, label.source, f"label {label.name!r}"))
    if selection.weight is not None:
        _expect_number(file, selection.weight, _type(file, schema, selection.weight, "data.weight"))
    return Layout(selection, frozenset(lists), frozenset(absent))


def is_list(type_: pa.DataType) -> bool:
    """True if values of this Arrow type are lists."""
    return bool(pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_))


def _is_id(type_: pa.DataType) -> bool:
    return bool(
        pt.is_integer(type_) or pt.is_null(type_) or (pt.is_dictionary(type_) and pt.is_integer(type_.value_type))
    )


def _expect_number(file: DataFile, column: str, type_: pa.DataType) -> None:
    if not (
        pt.is_integer(type_)
        or pt.is_floating(type_)
        or pt.is_boolean(type_)
        or pt.is_decimal(type_)
        or pt.is_null(type_)
    ):
        raise _wrong_type(file, column, type_, "a number or a boolean")


def _type(file: DataFile, schema: pa.Schema, column: str, reader: str) -> pa.DataType:
    if column not in file.columns:
        raise UserError(
            f"{file.path}: column {column!r}, which {reader} reads, is missing; {_where(file, column)}"
            f"{suggest(column, schema.names)}."
        )
    refuse_twice(file, column)
    return schema.field(column).type


def refuse_twice(file: DataFile, column: str) -> None:
    """Raise :class:`UserError` if the file has several columns called ``column``."""
    if file.columns[column] > 1:
        raise UserError(f"{file.path}: there are {file.columns[column]} columns {column!r}; rename or remove one.")


def _where(file: DataFile, column: str) -> str:
    """Hint that a folder such as ``day=1`` holds the value, if one does: the reader takes columns only from files."""
    part = next((part for part in file.path.split("/") if part.startswith(f"{column}=")), None)
    return (
        f"the folder {part} is not read as a column: write it into the files, or run `prepare table`; " if part else ""
    )


def _wrong_type(file: DataFile, column: str, type_: pa.DataType, wanted: str) -> UserError:
    return UserError(
        f"{file.path}: column {column!r} has type {type_} where {wanted} is expected; write the column in that type."
    )


def _check_statistics(file: DataFile, layout: Layout) -> None:
    checks: dict[str, list[Callable[[str, Any, Any], None]]] = {}
    selection = layout.selection
    if selection.out_of_range == "error":
        for feature in selection.sparse:
            size = selection.vocabulary_sizes[feature.name]
            if size != ANY_ID and feature.name not in selection.constants:
                checks.setdefault(feature.source, []).append(_id_check(feature, size))
    for column in [feature.source for feature in selection.dense if feature.name not in selection.constants]:
        checks.setdefault(column, []).append(_number_check(column))
    for label in selection.labels:
        if label.name not in layout.absent:
            check = _label_check(label.source) if label.kind == "binary" else _number_check(label.source)
            checks.setdefault(label.source, []).append(check)
    if selection.weight is not None:
        checks.setdefault(selection.weight, []).append(_weight_check(selection.weight))
    columns = [file.metadata.schema.column(index) for index in range(file.metadata.num_columns)]
    names = _owners(file, [column.path for column in columns])
    wanted = [(index, checks[name]) for index, name in enumerate(names) if name in checks]
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        for index, column_checks in wanted:
            chunk = row_group.column(index)
            if chunk.physical_type != columns[index].physical_type:  # Arrow would end the process on reading statistics
                raise unreadable(f"{file.path}: row group {group}", CONTRADICTION)
            statistics = chunk.statistics
            # Statistics of some types come as raw bytes (float16); their values are checked when they are read.
            if statistics is not None and statistics.has_min_max and _is_number(statistics.min, statistics.max):
                for check in column_checks:
                    check(f"{file.path}: row group {group}", statistics.min, statistics.max)


def _owners(file: DataFile, leaves: Sequence[str]) -> list[str]:
    """Column of each leaf of the footer, such as ``tag`` for ``tag.list.element``; names may contain dots."""
    owners: list[str] = []
    for name in file.schema.names:
        start = len(owners)
        while len(owners) < len(leaves) and (
            leaves[len(owners)].startswith(f"{name}.") or (len(owners) == start and leaves[len(owners)] == name)
        ):
            owners.append(name)
            if leaves[len(owners) - 1] == name:
                break
    return owners if len(owners) == len(leaves) else list(leaves)


def _is_number(*values: Any) -> bool:
    return all(isinstance(value, (int, float, Decimal)) for value in values)


def _id_check(feature: FeatureSpec, size: int) -> Callable[[str, Any, Any], None]:
    def check(place: str, low: Any, high: Any) -> None:
        if low < 0 or high >= size:
            raise bad_id(place, feature, low if low < 0 else high, size)

    return check


def _label_check(column: str) -> Callable[[str, Any, Any], None]:
    def check(place: str, low: Any, high: Any) -> None:
        for value in (low, high):
            if value not in (0, 1):
                raise bad_label(place, column, value)

    return check


def _number_check(column: str) -> Callable[[str, Any, Any], None]:
    def check(place: str, low: Any, high: Any) -> None:
        for value in (low, high):
            if not math.isfinite(value):
                raise bad_number(place, column, value)

    return check


def _weight_check(column: str) -> Callable[[str, Any, Any], None]:
    def check(place: str, low: Any, high: Any) -> None:
        if not (low >= 0 and math.isfinite(high)):
            raise bad_weight(place, column, low if not low >= 0 else high)

    return check
