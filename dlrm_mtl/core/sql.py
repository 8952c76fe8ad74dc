"""Texts of a user in DuckDB's SQL: as values, as names, and as the path of one file, never as a pattern."""

from __future__ import annotations

import os
import re
from pathlib import Path


def quote(text: str) -> str:
    """``text`` as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def file_literal(path: str | Path) -> str:
    """SQL literal of the local file ``path``, for functions that would take brackets and stars for a pattern."""
    return quote(re.sub(r"([\[\]*?])", r"[\1]", os.path.abspath(path)))


def in_utc(time: str) -> str:
    """SQL of a time with time zone as a plain TIMESTAMP in UTC, whatever the time zone of the host."""
    return f"make_timestamp(epoch_us(CAST({time} AS TIMESTAMPTZ)))"


ZONE = r":[0-9.]*\d\s*(Z|z|[+-]\d\d(:?\d\d)?|\s[A-Za-z][A-Za-z_/+-]*)\s*$"
"""A text of a time that says its offset or time zone behind the time of day."""


def text_time(text: str) -> str:
    """SQL of a text as TIMESTAMP: in UTC where it says an offset, as it stands where not; null where it is no time."""
    zoned = f"regexp_matches({text}, {quote(ZONE)})"
    closed = rf"regexp_replace({text}, '\s+([+-]\d[\d:]*)\s*$', '\1')"  # DuckDB reads no blank before an offset
    utc = f"make_timestamp(epoch_us(TRY_CAST({closed} AS TIMESTAMPTZ)))"
    return f"CASE WHEN {zoned} THEN {utc} ELSE TRY_CAST({text} AS TIMESTAMP) END"
