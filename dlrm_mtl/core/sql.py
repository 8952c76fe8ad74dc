"""A user's text in DuckDB's SQL: as a value, as a name, or as the path of one file, never as a pattern."""

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
    """SQL literal of the local file ``path``, for functions that would read brackets and stars as a pattern."""
    return quote(re.sub(r"([\[\]*?])", r"[\1]", os.path.abspath(path)))


def in_utc(time: str) -> str:
    """SQL that turns a time with time zone into a plain TIMESTAMP in UTC, for any time zone of the host."""
    return f"make_timestamp(epoch_us(CAST({time} AS TIMESTAMPTZ)))"


ZONE = r":[0-9.]*\d\s*(Z|z|[+-]\d\d(:?\d\d)?|\s[A-Za-z][A-Za-z_/+-]*)\s*$"
"""Pattern of a text with a time of day followed by an offset or a time zone."""


def text_time(text: str) -> str:
    """SQL that turns a text into a TIMESTAMP: in UTC if it has an offset, unchanged otherwise; null if it is not a time."""
    zoned = f"regexp_matches({text}, {quote(ZONE)})"
    closed = rf"regexp_replace({text}, '\s+([+-]\d[\d:]*)\s*$', '\1')"  # DuckDB accepts no blank before an offset
    utc = f"make_timestamp(epoch_us(TRY_CAST({closed} AS TIMESTAMPTZ)))"
    return f"CASE WHEN {zoned} THEN {utc} ELSE TRY_CAST({text} AS TIMESTAMP) END"
