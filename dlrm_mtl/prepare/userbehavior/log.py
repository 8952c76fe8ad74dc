"""Taobao's raw log, UserBehavior.csv (user, item, category, behaviour and time), loaded as the table ``events``."""

from __future__ import annotations

from pathlib import Path

import duckdb

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.sql import quote
from dlrm_mtl.prepare.common.duck import insert_csv, one_row

BEHAVIOURS = ("pv", "cart", "fav", "buy")
"""Names of the behaviours, by their numbers; the order of the labels."""

DAY = 86400
FIRST_SECOND = 1511539200
"""Start of the log: 2017-11-25 00:00 in China (UTC+8)."""
DAYS = 9
"""Number of days, 2017-11-25 to 2017-12-03."""
WITHIN = f"time >= {FIRST_SECOND} AND time < {FIRST_SECOND + DAYS * DAY}"
"""SQL condition of the log's days; a few rows are outside."""


def load(connection: duckdb.DuckDBPyConnection, paths: list[Path], notes: list[str]) -> None:
    """Make the table events (user, item, category, behaviour, time) from the raw log; ``notes`` gets a note on dropped rows.

    Raises :class:`UserError` if a file is malformed.
    """
    columns = dict.fromkeys(("user", "item", "category"), "INTEGER") | {"behaviour": "VARCHAR", "time": "BIGINT"}
    known = ", ".join(quote(name) for name in BEHAVIOURS)
    number_of = f"coalesce(list_position([{known}], behaviour), 0) - 1"
    selected = f"user, item, category, CAST({number_of} AS TINYINT) AS behaviour, time"
    insert_csv(connection, "events", paths, columns, selected, options="header = false, delim = ',', quote = ''")
    total, strange, late, empty = one_row(
        connection,
        f"""SELECT count(*), count(*) FILTER (behaviour < 0), count(*) FILTER (NOT ({WITHIN})),
        count(*) FILTER (user IS NULL OR item IS NULL OR category IS NULL OR time IS NULL) FROM events""",
    )
    if strange or empty:
        what = "a behaviour other than " + ", ".join(BEHAVIOURS) if strange else "an empty field"
        raise UserError(f"{paths[0]}: {strange or empty:,} rows have {what}; correct them or download the file again.")
    notes.append(f"{total:,} events read, of them {late:,} outside 2017-11-25 to 2017-12-03 (China) dropped")
