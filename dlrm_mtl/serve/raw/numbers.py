"""Columns of raw numbers as doubles, with the transforms of `prepare table`."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from dlrm_mtl.serve.raw.description import RawFeature, RawRows
from dlrm_mtl.serve.raw.texts import LARGEST_DECIMAL, Refuse, in_utc, microseconds, without

LARGEST = 3.4e38
"""Largest number in the reader's float32."""
EXACT = 2**53
POWERS = [10.0**power for power in range(39)]
_BLANKS = " \t\n\v\f\r"
_DIGITS = "[0-9]+(?:_[0-9]+)*"
_NUMBER = re.compile(rf"\+?-?(?:{_DIGITS}\.?|{_DIGITS}\.{_DIGITS}|\.{_DIGITS})(?:[eE][-+]?{_DIGITS})?")

Numbers = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""[N] numbers, and a mask of those that are missing."""


def numbers(column: pa.Array, raw: RawRows, refuse: Refuse) -> Numbers:
    """Numbers of a column of numbers, times (seconds since 1970) or texts.

    Raises:
        UserError: a value is no number, or too large.
    """
    type_ = column.type
    if pt.is_string(type_):
        column = without(column, raw.nulls)
    elif pt.is_boolean(type_):
        column, type_ = column.cast(pa.int8()), pa.int8()
    null = column.is_null().to_numpy(zero_copy_only=False)
    if pt.is_null(type_):
        return np.zeros(len(column)), null
    if pt.is_string(type_):
        values = np.array([_parsed(text, raw) for text in column.to_pylist()], np.float64)
    elif pt.is_decimal(type_) and type_.precision <= LARGEST_DECIMAL:
        values = np.array([0.0 if value is None else as_double(value) for value in column.to_pylist()], np.float64)
    elif pt.is_date(type_) or pt.is_timestamp(type_):
        values = microseconds(in_utc(column) if pt.is_timestamp(type_) else column) / 1e6
    elif pt.is_integer(type_) or pt.is_floating(type_):
        filled = pc.fill_null(column, pa.scalar(0, type_)) if null.any() else column
        values = filled.to_numpy(zero_copy_only=False).astype(np.float64)
        if pt.is_floating(type_):
            null = null | np.isnan(values)
    else:
        raise refuse(0, f"values of type {type_}, which are no numbers; give numbers")
    with np.errstate(invalid="ignore"):
        bad = ~null & ~(np.abs(values) <= LARGEST)
    if bad.any():
        at = int(np.argmax(bad))
        raise refuse(at, f"{column[at].as_py()!r:.80}, which is no finite number below {LARGEST:g}; correct it")
    return np.where(null, 0.0, values), null


def _parsed(text: str | None, raw: RawRows) -> float:
    """The number in a text, NaN if there is none."""
    if text is None:
        return math.nan
    text = trimmed(text)
    if raw.thousands is not None:
        mark, point = re.escape(raw.thousands), re.escape(raw.decimal)
        if re.fullmatch(rf"[-+]?[0-9]{{1,3}}({mark}[0-9]{{3}})+({point}[0-9]*)?", text):
            text = text.replace(raw.thousands, "")
    if raw.decimal != ".":
        text = text.replace(raw.decimal, ".")
    text = text.strip(_BLANKS)
    return float(text.removeprefix("+")) if _NUMBER.fullmatch(text) else math.nan


def trimmed(text: str) -> str:
    """The text without blanks of any width at its ends, as SQL's trim: neither tabs nor line ends."""
    first, last = 0, len(text)
    while first < last and unicodedata.category(text[first]) == "Zs":
        first += 1
    while last > first and unicodedata.category(text[last - 1]) == "Zs":
        last -= 1
    return text[first:last]


def as_double(value: Decimal) -> float:
    """The double that DuckDB makes of a decimal: beyond 2**53 it adds whole part and fraction."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    unscaled = int("".join(map(str, digits))) * (10 ** max(exponent, 0))
    scale = max(-exponent, 0)
    if unscaled <= EXACT or scale == 0:
        found = float(unscaled) / POWERS[scale]
    else:
        whole, part = divmod(unscaled, 10**scale)
        found = float(whole) + float(part) / POWERS[scale]
    return -found if sign else found


def literal(value: float) -> float:
    """The double that DuckDB makes of the shortest text of ``value`` in SQL, which is a decimal unless it has an exponent."""
    text = repr(value)
    return value if "e" in text else as_double(Decimal(text))


def transformed(found: Numbers, feature: RawFeature, refuse: Refuse) -> Numbers:
    """Numbers after fill, clip and transform; raises :class:`UserError` for a number below 0 under log1p."""
    values, null = found
    if feature.fill is not None:
        values, null = np.where(null, literal(feature.fill), values), np.zeros_like(null)
    if feature.clip is not None:
        low, high = map(literal, feature.clip)
        values = np.minimum(np.maximum(values, low), high)
    if feature.transform == "log1p":
        bad = ~null & (values < 0)
        if bad.any():
            at = int(np.argmax(bad))
            raise refuse(at, f"{values[at]:g}, which log1p cannot take: it is below 0; correct it")
        values = _logarithms(1 + np.where(null, 0.0, values))
    elif feature.transform == "signed_log":
        values = np.sign(values) * _logarithms(1 + np.abs(values))
    return values, null


def _logarithms(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithms by the C library, as in DuckDB: NumPy's may differ in the last bit."""
    shown: Iterable[float] = values.tolist()
    return np.fromiter(map(math.log, shown), np.float64, len(values))
