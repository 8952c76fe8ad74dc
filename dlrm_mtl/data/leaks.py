"""Label leakage: how well a single column predicts a binary label, by counts of each of its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

SUSPICIOUS_AUC = 0.9
"""AUC above which a column is suspicious: few columns known before an event reach it."""

FEWEST = 20
"""Smallest number of rows of each class for which a leak is reported."""

COMMON = 0.5
"""Largest share of the other class for which a value held by all rows of a class is suspicious."""


@dataclass(frozen=True)
class Leak:
    """Suspicious information of a column about a label, which may not have been known before the event."""

    column: str
    label: str
    exact: bool
    """True if the column determines the label of every row: it is null, or equal, depending on the label."""
    text: str
    """Description of the leak, such as "null exactly where click is 0"."""


@dataclass(frozen=True)
class Candidate:
    """A column in SQL.

    Args:
        sql: SQL of a number or of a category; of the length for a list.
        number: True if values are ordered by size; categories are ordered by the rate of the label among a value's other
            rows.
        listed: True for the length of a list, which is null for an empty one.
    """

    sql: str
    number: bool
    listed: bool = False


def find_leaks(
    connection: duckdb.DuckDBPyConnection, rows: str, columns: Mapping[str, Candidate], labels: Mapping[str, str]
) -> list[Leak]:
    """Suspicious leaks of ``labels`` through ``columns``.

    Args:
        connection: connection to the database.
        rows: SQL of the relation with the columns, as it follows FROM.
        columns: columns by name.
        labels: SQL of binary labels, by name; null and values other than 0 and 1 are ignored.
    """
    found = []
    for name, column in columns.items():
        _count(connection, rows, column, labels)
        for number, label in enumerate(labels):
            leak = _look(connection, name, column, label, number)
            if leak is not None:
                found.append(leak)
    connection.execute("DROP TABLE IF EXISTS leak_counts")
    return found


def _count(connection: duckdb.DuckDBPyConnection, rows: str, column: Candidate, labels: Mapping[str, str]) -> None:
    """Table ``leak_counts``: positives (p0, p1, ...) and negatives (n0, n1, ...) of every label, by value (x) of the column."""
    values = ", ".join(f"TRY_CAST({sql} AS DOUBLE) AS y{number}" for number, sql in enumerate(labels.values()))
    counts = ", ".join(
        f"count(*) FILTER (y{number} = 1) AS p{number}, count(*) FILTER (y{number} = 0) AS n{number}"
        for number in range(len(labels))
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE leak_counts AS
        SELECT x, {counts} FROM (SELECT {column.sql} AS x, {values} FROM {rows}) GROUP BY x"""
    )


def _look(connection: duckdb.DuckDBPyConnection, name: str, column: Candidate, label: str, number: int) -> Leak | None:
    # A category is ordered by its leave-one-out rate, which is (p - 1) / (p + n - 1) for a positive: ids that occur once
    # say nothing, and nothing is memorised.
    order = "x NULLS FIRST" if column.number else "score"
    scored = "SELECT x, p, n, NULL AS score FROM counts"
    if not column.number:
        scored = """SELECT x, p, 0 AS n, (p - 1 + prior) / (p + n) AS score FROM counts, priors WHERE p > 0
            UNION ALL SELECT x, 0, n, (p + prior) / (p + n) FROM counts, priors WHERE n > 0"""
    query = f"""WITH counts AS MATERIALIZED (
            SELECT x, p{number} AS p, n{number} AS n FROM leak_counts WHERE p{number} + n{number} > 0),
        priors AS (SELECT sum(p) / sum(p + n) AS prior FROM counts),
        scored AS ({scored}),
        ranked AS (SELECT p, n, sum(n) OVER (ORDER BY {order} RANGE UNBOUNDED PRECEDING) AS upto,
            sum(n) OVER (PARTITION BY {"x" if column.number else "score"}) AS here FROM scored),
        tops AS (SELECT max(p) AS p, max(n) AS n FROM counts)
        SELECT sum(p), sum(n), (SELECT sum(p * (upto - here / 2)) FROM ranked),
        coalesce(sum(p) FILTER (x IS NULL), 0), coalesce(sum(n) FILTER (x IS NULL), 0),
        count(*) FILTER (x IS NOT NULL), max(p), max(n),
        max(n) FILTER (p = (SELECT p FROM tops)), max(p) FILTER (n = (SELECT n FROM tops)),
        coalesce(bool_and(p = 0 OR n = 0), false) FROM counts"""
    row = connection.execute(query).fetchone()
    assert row is not None
    positives, negatives = int(row[0] or 0), int(row[1] or 0)
    if min(positives, negatives) < FEWEST:
        return None
    won, null_p, null_n, distinct = float(row[2] or 0), int(row[3]), int(row[4]), int(row[5])
    empty = "empty" if column.listed else "null"
    if (null_p, null_n) == (0, negatives):
        return Leak(name, label, True, f"{empty} exactly where {label} is 0")
    if (null_p, null_n) == (positives, 0):
        return Leak(name, label, True, f"{empty} exactly where {label} is 1")
    if row[10] and distinct == 2 and null_p + null_n == 0:
        return Leak(name, label, True, f"equal to {label}, value for value")
    if row[6] == positives and row[8] <= COMMON * negatives:
        return Leak(name, label, False, f"constant where {label} is 1")
    if row[7] == negatives and row[9] <= COMMON * positives:
        return Leak(name, label, False, f"constant where {label} is 0")
    pairs = positives * negatives
    aucs = [won / pairs]
    if column.number:  # nulls came first; now let them come last
        last = won - (positives - null_p) * null_n + null_p * (negatives - null_n)
        aucs = [auc for one in (won / pairs, last / pairs) for auc in (one, 1 - one)]
    if max(aucs) > SUSPICIOUS_AUC:
        return Leak(name, label, False, f"alone it has an AUC of {max(aucs):.3f} for {label}")
    return None
