"""Types of a column of Parquet files: its type when loaded, and a common type of several files."""

from __future__ import annotations

import re

import duckdb

from dlrm_mtl.prepare.common.ids import one_row

UNTYPED = '"NULL"'
"""Type, or part of a type, that DuckDB gives to values that are all null and untyped."""

_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_WHOLE = (*_INTEGERS, *(f"U{name}" for name in _INTEGERS))
_REAL = ("FLOAT", "DOUBLE")


def loaded_type(type_: str) -> str:
    """Loaded type of a column of a Parquet file.

    Times with a time zone become times in UTC; values without a type become integers, all null.
    """
    if type_.startswith("TIMESTAMP") and ("ZONE" in type_ or "TZ" in type_):
        return "TIMESTAMP"
    return type_.replace(UNTYPED, "INTEGER")


def common_type(connection: duckdb.DuckDBPyConnection, one: str, other: str) -> str | None:
    """Type that holds all values of both, or DOUBLE for numbers; None for values of different kinds.

    For lists, the same holds of their entries.
    """
    if one.endswith("[]") and other.endswith("[]"):
        inner = common_type(connection, one[:-2], other[:-2])
        return None if inner is None else f"{inner}[]"
    kinds = {_kind(one), _kind(other)}
    if len(kinds) > 1 or None in kinds:
        return None
    if kinds == {"time"}:
        return "TIMESTAMP"
    if one in _REAL or other in _REAL:
        return "DOUBLE"
    if one.startswith("DECIMAL") or other.startswith("DECIMAL"):
        before, behind = (max(digits) for digits in zip(_digits(one), _digits(other), strict=True))
        return f"DECIMAL({before + behind},{behind})" if before + behind <= 38 else "DOUBLE"
    query = f"SELECT CAST(NULL AS {one}) AS value UNION ALL SELECT CAST(NULL AS {other})"
    return str(one_row(connection, f"SELECT column_type FROM (DESCRIBE ({query}))")[0])


def _digits(type_: str) -> tuple[int, int]:
    """Number of decimal digits of a whole number or DECIMAL before the point, and behind it."""
    if type_.startswith("DECIMAL"):
        width, behind = map(int, re.findall(r"\d+", type_))
        return width - behind, behind
    return {"TINYINT": 3, "SMALLINT": 5, "INTEGER": 10, "BIGINT": 20}.get(type_.removeprefix("U"), 39), 0


def _kind(type_: str) -> str | None:
    if type_ in (*_WHOLE, *_REAL) or type_.startswith("DECIMAL"):
        return "number"
    return "time" if type_ == "DATE" or type_.startswith("TIMESTAMP") else None
