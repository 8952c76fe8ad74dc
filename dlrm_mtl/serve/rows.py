"""Rows to score, from several sources, as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.file_checks import is_list
from dlrm_mtl.data.spec import FeatureSpec

Rows = Any
"""A sequence of mappings from columns to values, a pyarrow.Table or RecordBatch, or a pandas.DataFrame."""
Columns = tuple[dict[str, pa.Array], dict[str, Counter[str]], int]
"""Columns of the prepared data set by feature; numbers of fields and values that a policy was applied to, by ``missing`` and
``unknown``, then by feature; the number of rows."""
_ABSENT = object()


class Where(NamedTuple):
    """Origin of rows, for errors."""

    name: str = "rows"
    first: int = 0
    """Number of the first row."""

    def row(self, number: int) -> str:
        """Place of a row, counted from the first one."""
        return f"{self.name}, row {self.first + number}"


_WRAP = 1 << 64


@dataclass(frozen=True)
class Field:
    """A column of the rows to score: an array of a table, or the values of mappings."""

    name: str
    array: pa.Array | None
    values: list[Any] | None
    """None for a row without the field, which ``absent`` tells from null."""
    absent: NDArray[np.bool_] | None
    """[N] mask of rows without the field; None if all have it."""

    def missing(self, feature: FeatureSpec, where: Where) -> UserError:
        """Error for the first row without the field."""
        row = int(np.argmax(self.absent)) if self.absent is not None else 0
        return UserError(
            f"{where.row(row)}: there is no field {self.name!r}, which feature {feature.name!r} reads; add it (null where it "
            "has no value), or set a policy for missing fields."
        )


def fields_of(rows: Rows, names: Sequence[str], where: Where) -> tuple[dict[str, Field], int]:
    """Columns ``names`` of the rows, and the number of rows.

    Args:
        rows: rows to score.
        names: names of columns, which the rows may lack.
        where: origin of the rows.

    Raises:
        UserError: the rows are of a wrong type, or have a column twice.
    """
    table = table_of(rows)
    if table is None:
        return _fields_of_mappings(rows, names, where), len(rows)
    fields = {}
    numbers = Counter(table.column_names)
    places = {name: number for number, name in enumerate(numbers)} if len(numbers) == table.num_columns else {}
    for name in names:
        if name not in numbers:
            fields[name] = Field(name, None, [None] * table.num_rows, np.ones(table.num_rows, np.bool_))
            continue
        if numbers[name] > 1:
            raise UserError(f"{where.name}: there are several columns {name!r}; rename or remove one.")
        column = table.column(places.get(name, name))
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # a copy
        if isinstance(column, pa.ChunkedArray):  # older pyarrow gives this for columns without chunks
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        fields[name] = Field(name, column, None, None)
    return fields, table.num_rows


def columns_of(
    rows: Rows, features: Sequence[FeatureSpec], where: Where
) -> tuple[dict[str, pa.Array], dict[str, NDArray[np.bool_]], int]:
    """Values of every feature, a mask of the rows in which each is missing, and the number of rows.

    Columns have the types allowed in Parquet files: integers or lists of integers, numbers. A value is null if the row
    lacks the field, which is then missing, or if its value is null. A feature without any field has no column.

    Args:
        rows: rows of the prepared data set.
        features: features that the model reads; their columns are looked for.
        where: origin of the rows.

    Returns:
        By feature: an array; a mask [N] bool of missing fields, only if there are any.

    Raises:
        UserError: the rows, or a value, are of a wrong type.
    """
    fields, count = fields_of(rows, [feature.source for feature in features], where)
    absent = {feature.name: fields[feature.source].absent for feature in features}
    found = {
        feature.name: prepared(fields[feature.source], feature, where)
        for feature in features
        if (mask := absent[feature.name]) is None or not mask.all()
    }
    return found, {name: mask for name, mask in absent.items() if mask is not None}, count


def table_of(rows: Rows) -> pa.Table | None:
    """``rows`` as an Arrow table; None for a sequence of mappings."""
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if type(rows).__module__.partition(".")[0] == "pandas":
        try:
            return pa.Table.from_pandas(rows, preserve_index=False)
        except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"rows: this pandas object is no table of numbers and lists ({error}); correct it."
            ) from None
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Sequence):
        raise UserError(
            f"rows: {type(rows).__name__} is no choice of rows; give a list of dicts, an Arrow table or a pandas DataFrame."
        )
    return None


def _fields_of_mappings(rows: Sequence[Any], names: Sequence[str], where: Where) -> dict[str, Field]:
    dicts = check_mappings(rows, where)
    fields = {}
    for name in names:
        values = _present(rows, name) if dicts else None
        absent = None
        if values is None:
            values = [row.get(name, _ABSENT) for row in rows]
            absent = np.fromiter((value is _ABSENT for value in values), np.bool_, len(values))
            values = [None if value is _ABSENT else value for value in values]
        fields[name] = Field(name, None, values, absent if absent is not None and absent.any() else None)
    return fields


def check_mappings(rows: Sequence[Any], where: Where) -> bool:
    """Check that all rows are mappings; return True if all are dicts.

    Raises:
        UserError: a row is none.
    """
    if set(map(type, rows)) <= {dict}:
        return True
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"{where.row(number)}: is {shown(row)} where a mapping from columns to values is expected.")
    return False


def _present(rows: Sequence[dict[str, Any]], field: str) -> list[Any] | None:
    """Values of a field that every row has; None if one lacks it."""
    try:
        return [row[field] for row in rows]
    except KeyError:
        return None


def prepared(field: Field, feature: FeatureSpec, where: Where) -> pa.Array:
    """A column of the prepared data set, in a type allowed in its files: integers or lists of integers, numbers.

    Raises:
        UserError: a value is of a wrong type.
    """
    if field.array is not None:
        return _typed(field.array, feature, where)
    assert field.values is not None
    return _array(field.values, feature, where)


def _typed(column: pa.Array, feature: FeatureSpec, where: Where) -> pa.Array:
    """The column as the Parquet reader takes it. Whole floats count as ids: pandas has them in columns with nulls."""
    type_ = column.type
    if pt.is_dictionary(type_):
        column, type_ = column.dictionary_decode(), type_.value_type
    if feature.kind == "dense":
        good = pt.is_integer(type_) or pt.is_floating(type_) or pt.is_boolean(type_) or pt.is_decimal(type_)
        if good or pt.is_null(type_):
            return column
        raise _wrong_type(feature, type_, where)
    if pt.is_null(type_):
        return column.cast(pa.list_(pa.int64()) if feature.kind == "sequence" else pa.int64())
    if is_list(type_):
        if pt.is_integer(type_.value_type):
            return column
        if pt.is_null(type_.value_type):
            return column.cast(pa.list_(pa.int64()))
    elif feature.kind == "sparse":
        if pt.is_integer(type_):
            return column
        if pt.is_floating(type_):
            try:
                return column.cast(pa.int64())
            except pa.ArrowInvalid:
                pass
    raise _wrong_type(feature, type_, where)


def _wrong_type(feature: FeatureSpec, found: Any, where: Where) -> UserError:
    wanted = {"dense": "a number", "sparse": "an integer or a list of integers", "sequence": "a list of integers"}
    return UserError(
        f"{where.name}: column {feature.source!r} has type {found} where {wanted[feature.kind]} is expected."
    )


def _array(values: list[Any], feature: FeatureSpec, where: Where) -> pa.Array:
    check = {"dense": _number, "sparse": _ids, "sequence": _id_list}[feature.kind]
    plain = []
    for number, value in enumerate(values):
        try:
            plain.append(None if value is None else check(value))
        except (TypeError, ValueError, OverflowError):
            wanted = {"dense": "a number", "sparse": "an id or a list of ids", "sequence": "a list of ids"}[
                feature.kind
            ]
            raise UserError(
                f"{where.row(number)}: {feature.source!r} holds {shown(value)} where {wanted} is expected (ids have 64 bits)."
            ) from None
    if feature.kind == "dense":
        return pa.array(plain, pa.float64())
    if feature.kind == "sequence" or any(isinstance(value, list) for value in plain):
        lists = [value if value is None or isinstance(value, list) else [value] for value in plain]
        return pa.array(lists, pa.list_(pa.int64()))
    return pa.array(plain, pa.int64())


def _number(value: Any) -> float:
    if isinstance(value, (str, bytes)):  # float() would parse these
        raise TypeError
    return float(value)


def _ids(value: Any) -> int | list[int | None]:
    return _id_list(value) if isinstance(value, (list, tuple, np.ndarray)) else _id(value)


def _id_list(value: Any) -> list[int | None]:
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise TypeError
    return [None if each is None else _id(each) for each in value]


def _id(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError
    number = int(value)
    if not -(1 << 63) <= number < _WRAP:
        raise ValueError
    return number - _WRAP if number >= 1 << 63 else number


def shown(value: Any) -> str:
    """A value as text, for errors."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return "an integer of too many digits"
    return text if len(text) <= 60 else text[:59] + "…"
