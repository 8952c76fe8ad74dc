"""Columns that are read beside a model's inputs, one int64 for every row: groups, values and numbers for metrics.

An encoder turns an Arrow column into int64. It may be used by several threads at once.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError

Ids = NDArray[np.int64]

NONE = np.iinfo(np.int64).min
"""Code of a null."""
MOST_VALUES = 100_000
"""Number of values of a column up to which they have codes."""


class ColumnEncoder(Protocol):
    """Map of a column's rows to int64."""

    wanted: str
    """Types that fit, for a message."""

    def accepts(self, type_: pa.DataType) -> bool:
        """True if columns of this type can be encoded."""
        ...

    def __call__(self, column: pa.Array) -> Ids:
        """Codes [rows]."""
        ...


@dataclass(frozen=True)
class CarriedColumn:
    """A column to read beside the inputs."""

    column: str
    """Name of the Parquet column."""
    reader: str
    """Part of the configuration that names it, for messages."""
    encoder: ColumnEncoder = field(compare=False)


class GroupIds:
    """ColumnEncoder of the ids of groups: integers as they are, a hash of 64 bits for all else.

    Args:
        unknown: id that identifies nothing, and is read as null.
    """

    wanted = "integers or strings"

    def __init__(self, unknown: int | None = None) -> None:
        self.unknown = unknown

    def accepts(self, type_: pa.DataType) -> bool:
        """True for anything that can be an id."""
        return _is_plain(type_) and not pt.is_floating(type_)

    def __call__(self, column: pa.Array) -> Ids:
        """Ids [rows]; :data:`NONE` for a null."""
        column = _decoded(column)
        if pt.is_integer(column.type):
            ids = _values(column, 0).astype(np.int64)  # of unsigned ones, the largest wrap
        else:
            encoded = column.dictionary_encode()
            known = np.array([_digest(value) for value in encoded.dictionary.to_pylist()], np.int64)
            ids = np.append(known, NONE)[_values(encoded.indices, len(known))]
        if self.unknown is not None:
            ids = np.where(ids == self.unknown, NONE, ids)
        return _with_nulls(ids, column)


class ValueCodes:
    """ColumnEncoder of the values of a column with few of them: numbers from 0, in the order in which they occur."""

    wanted = "single values, not lists"

    def __init__(self) -> None:
        self.values: list[Any] = []
        """The value behind every code."""
        self._codes: dict[Any, int] = {}
        self._lock = threading.Lock()

    def accepts(self, type_: pa.DataType) -> bool:
        """True for single values."""
        return _is_plain(type_)

    def __call__(self, column: pa.Array) -> Ids:
        """Codes [rows]; :data:`NONE` for a null. A column with too many values keeps :data:`MOST_VALUES`, and raises."""
        encoded = _decoded(column).dictionary_encode()
        with self._lock:
            known = np.array([self._code(value) for value in encoded.dictionary.to_pylist()], np.int64)
        return np.append(known, NONE)[_values(encoded.indices, len(known))]

    def _code(self, value: Any) -> int:
        code = self._codes.setdefault(value, len(self.values))
        if code == len(self.values):
            if code == MOST_VALUES:
                raise _TooManyError
            self.values.append(value)
        return code


class Numbers:
    """ColumnEncoder of numbers: the bits of float64; nan for a null."""

    wanted = "numbers"

    def accepts(self, type_: pa.DataType) -> bool:
        """True for numbers and booleans."""
        return bool(
            pt.is_integer(type_)
            or pt.is_floating(type_)
            or pt.is_decimal(type_)
            or pt.is_boolean(type_)
            or pt.is_null(type_)
        )

    def __call__(self, column: pa.Array) -> Ids:
        """Bits [rows] of float64."""
        numbers = column.cast(pa.uint8()) if pt.is_boolean(column.type) else column
        values: NDArray[np.float64] = numbers.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        return np.ascontiguousarray(values).view(np.int64)


class _TooManyError(Exception):
    """A column has more values than :data:`MOST_VALUES`."""


def encode(carried: CarriedColumn, column: pa.Array, place: str) -> Ids:
    """Codes [rows] of a column.

    Args:
        carried: the column to read.
        column: its rows.
        place: origin of the rows, for a message.

    Raises:
        UserError: the column has too many values.
    """
    try:
        return carried.encoder(column)
    except _TooManyError:
        raise UserError(
            f"{place}: column {carried.column!r}, which {carried.reader} reads, has more than {MOST_VALUES:,} values; name one "
            "with fewer, or cut its numbers into ranges with quantiles or edges.",
            local=True,
        ) from None


def _is_plain(type_: pa.DataType) -> bool:
    return not pt.is_nested(type_) or pt.is_dictionary(type_)


def _decoded(column: pa.Array) -> pa.Array:
    if pt.is_dictionary(column.type):
        return column.dictionary_decode()
    return column.cast(pa.int64()) if pt.is_null(column.type) else column


def _values(column: pa.Array, null: int) -> NDArray[Any]:
    """Integers [rows], ``null`` where null."""
    filled = pc.fill_null(column, pa.scalar(null, column.type)) if column.null_count else column
    result: NDArray[Any] = filled.to_numpy(zero_copy_only=False)
    return result


def _with_nulls(ids: Ids, column: pa.Array) -> Ids:
    if not column.null_count:
        return ids
    return np.where(column.is_null().to_numpy(zero_copy_only=False), NONE, ids)


def _digest(value: Any) -> int:
    """64 bits that identify a value."""
    content = value if isinstance(value, bytes) else str(value).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
