"""Columns of raw values as the texts by which `prepare table` compares values: 17 for the integer 17 and the double 17.0."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError

EXACT = {32: 2**24, 64: 2**53}
"""Numbers from which on a floating-point number of so many bits stands for several integers."""
LARGEST_DECIMAL = 38
"""Number of digits of the longest decimals."""
SHORTEST = 1e-4
"""Numbers below this one are written with an exponent."""

Refuse = Callable[[int, str], UserError]
"""Function that makes the error for the value at a position, from what is wrong with it."""


def plain(column: pa.Array) -> pa.Array:
    """The column without a dictionary, and with one of the types of texts and lists."""
    type_ = column.type
    if pt.is_dictionary(type_):
        return plain(column.dictionary_decode())
    if pt.is_large_string(type_) or pt.is_string_view(type_):
        return column.cast(pa.string())
    if pt.is_float16(type_):
        return column.cast(pa.float32())
    return column


def texts(column: pa.Array, refuse: Refuse, *, whole: bool = False, by_value: bool = True) -> pa.Array:
    """Values as texts, [N] strings; null and NaN become null.

    Args:
        column: [N] plain values.
        refuse: maker of errors.
        whole: True if the text 17.0 becomes 17.
        by_value: True if the number 17.0 becomes 17, and the decimal 1.50 becomes 1.5.

    Raises:
        UserError: values of this type, or a value, have no such text.
    """
    type_ = column.type
    if pt.is_null(type_):
        return column.cast(pa.string())
    if pt.is_string(type_):
        return without_fraction(column) if whole else column
    if pt.is_integer(type_) or pt.is_boolean(type_):
        return column.cast(pa.string())
    if pt.is_floating(type_):
        return _floats(column, refuse, by_value)
    if pt.is_decimal(type_) and type_.precision <= LARGEST_DECIMAL:
        return _decimals(column, by_value and type_.scale > 0)
    if pt.is_date(type_) or pt.is_timestamp(type_):
        return _times(column, refuse)
    if pt.is_binary(type_) or pt.is_large_binary(type_) or pt.is_fixed_size_binary(type_):
        return pa.array([None if value is None else _escaped(value) for value in column.to_pylist()], pa.string())
    raise refuse(0, f"values of type {type_}, which are no ids; give integers, texts or lists of them")


def without_fraction(column: pa.Array) -> pa.Array:
    """Texts of whole numbers without the fraction that is left by programs which read integers as doubles."""
    return pc.replace_substring_regex(column, r"^(-?[0-9]+)\.0$", r"\1")


def without(values: pa.Array, nulls: Iterable[str]) -> pa.Array:
    """Texts in which ``nulls`` are null."""
    held = is_in(values, nulls)
    return pc.if_else(pa.array(held), pa.scalar(None, pa.string()), values) if held.any() else values


def is_in(values: pa.Array, some: Iterable[str]) -> NDArray[np.bool_]:
    """Mask of the texts that are among ``some``, [N] bool; False for null."""
    found: NDArray[np.bool_] = pc.is_in(values, options=_wanted(frozenset(some))).to_numpy(zero_copy_only=False)
    return found


@functools.lru_cache
def _wanted(some: frozenset[str]) -> pc.SetLookupOptions:
    return pc.SetLookupOptions(value_set=pa.array(sorted(some), pa.string()))


def _floats(column: pa.Array, refuse: Refuse, by_value: bool) -> pa.Array:
    values = pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False)
    null = np.isnan(values)
    limit = EXACT[column.type.bit_width]
    unclear = (np.abs(values) >= limit) & np.isfinite(values)
    if unclear.any():
        at = int(np.argmax(unclear))
        raise refuse(at, f"{values[at]:.17g}, and numbers of type {column.type} from {limit} on stand for several ids")
    whole = (values == np.floor(values)) & np.isfinite(values) if by_value else np.zeros(len(values), np.bool_)
    if (whole | null).all():
        return pa.array(np.where(null, 0, values).astype(np.int64), mask=null).cast(pa.string())
    write = str if column.type == pa.float64() else _single
    shown = [
        None if absent else str(int(value)) if exact else write(value)
        for value, exact, absent in zip(values if write is _single else values.tolist(), whole, null, strict=True)
    ]
    return pa.array(shown, pa.string())


def _single(value: Any) -> str:
    """The shortest text of a float32, with an exponent where that of a double has one."""
    if not np.isfinite(value):
        return str(value)
    if value and abs(value) < np.float32(SHORTEST):
        return str(np.format_float_scientific(value, trim="-", exp_digits=2))
    return str(np.format_float_positional(value, trim="0"))


def _decimals(column: pa.Array, trimmed: bool) -> pa.Array:
    shown = [None if value is None else format(value, "f") for value in column.to_pylist()]
    if trimmed:
        shown = [text and text.rstrip("0").rstrip(".") for text in shown]
    return pa.array(shown, pa.string())


def in_utc(column: pa.Array) -> pa.Array:
    """Times without a time zone: those with one in UTC, in microseconds."""
    type_ = column.type
    if type_.tz is None:
        return column
    moments = column.cast(pa.timestamp(type_.unit))
    return pa.array(microseconds(moments), mask=moments.is_null().to_numpy(zero_copy_only=False)).cast(
        pa.timestamp("us")
    )


def microseconds(column: pa.Array) -> NDArray[np.int64]:
    """Microseconds since 1970 of dates or times, [N] int64, halves rounded away from 0; 0 for null."""
    if pt.is_date(column.type):
        return days(column) * 86_400_000_000
    values: NDArray[np.int64] = pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    unit = column.type.unit
    if unit == "ns":
        return np.sign(values) * ((np.abs(values) + 500) // 1000)
    return values * {"s": 1_000_000, "ms": 1000, "us": 1}[unit]


def days(column: pa.Array) -> NDArray[np.int64]:
    """Days since 1970 of dates, [N] int64; 0 for null."""
    if column.type == pa.date64():
        column = column.cast(pa.date32())
    return pc.fill_null(column.cast(pa.int32()), 0).to_numpy(zero_copy_only=False).astype(np.int64)


FIRST, LAST = (int(np.datetime64(day, "D").astype(np.int64)) for day in ("0001-01-01", "9999-12-31"))
"""Days since 1970 of the first and the last day with a year of four digits."""


def _times(column: pa.Array, refuse: Refuse) -> pa.Array:
    null = column.is_null().to_numpy(zero_copy_only=False)
    if pt.is_date(column.type):
        moments, unit = days(column), "D"
        whole_days = moments
    else:
        column = in_utc(column)
        moments = pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        unit = column.type.unit
        whole_days = moments // (86_400 * {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}[unit])
    odd = (whole_days < FIRST) | (whole_days > LAST)
    if odd.any():
        raise refuse(int(np.argmax(odd)), "a time outside the years 1 to 9999; correct it")
    shown = np.datetime_as_string(moments.astype(f"datetime64[{unit}]")).tolist()
    if unit != "D":
        shown = [text.replace("T", " ") for text in shown]
    if unit not in "Ds":
        shown = [text.rstrip("0").rstrip(".") for text in shown]
    return pa.array(shown, pa.string(), mask=null) if null.any() else pa.array(shown, pa.string())


def _escaped(value: bytes) -> str:
    r"""Bytes as text: printable ASCII, and \xFF for all others and for quotes and backslashes."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b"\\'\"" else f"\\x{byte:02X}" for byte in value)
