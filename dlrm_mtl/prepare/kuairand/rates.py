"""KuaiRand-Pure: label rates of strictly earlier days, as dense features.

To prevent leaks, a row of day d gets counts of rows of days before d only, never of its own day; rows of validation and
test days get counts of the training days only. A rate is not the mean label but the mean excess over that of the page
(`tab`), sum(label - rate of the tab up to that day) / (n + strength). So it is 0 for unseen values and shrinks towards 0
for rare ones. The histories before 2022-04-25 give further rates that are the same for all days: each watched video is a
row, with a long view or a like if the video is in the user's other two lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

LAST_TRAINING_DAY = 20220505
TARGETS = ["is_click", "long_view", "is_like", "is_profile_enter"]
HISTORY_TARGETS = ["long_view", "is_like"]
DURATION_EDGES_S = [7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300]
STEPS = {"is_click": 0.02, "long_view": 0.02, "is_like": 0.002, "is_profile_enter": 0.002}
"""Rounding steps of the rates, far below their spread: a smaller step costs disk space."""


@dataclass(frozen=True)
class RateGroup:
    """Rows that share the values of ``keys``; ``strength`` is the number of average rows that are mixed into a rate."""

    name: str
    keys: tuple[str, ...]
    strength: float
    targets: tuple[str, ...] = ()
    """Labels whose rates over earlier days become features."""
    history: bool = False
    """True if the rates over the histories become features."""


GROUPS = [
    RateGroup("user", ("user_id",), 5, targets=tuple(TARGETS), history=True),
    RateGroup("video", ("video_id",), 20, targets=tuple(TARGETS), history=True),
    RateGroup("user_tag", ("user_id", "first_tag"), 3, history=True),
]


def duration_bucket(milliseconds: str) -> str:
    """SQL of the bucket, 0 to 12, of the duration in the column ``milliseconds``; null stays null."""
    steps = " + ".join(f"CAST({milliseconds} >= {edge}000 AS INTEGER)" for edge in DURATION_EDGES_S)
    return f"({steps})"


def columns() -> dict[str, list[str]]:
    """Feature columns of each table of :func:`create`; every table also has the column ``row``."""
    return {f"rates_{group.name}": list(_describe(group)) for group in GROUPS}


def names() -> list[str]:
    """All feature columns, in the order of :func:`columns`."""
    return list(descriptions())


def descriptions() -> dict[str, str]:
    """Description of each feature column, by name."""
    return {name: text for group in GROUPS for name, text in _describe(group).items()}


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the tables of :func:`columns` from the tables exposures, history and videos."""
    _create_excess(connection)
    _create_past(connection)
    for group in GROUPS:
        _create_rates(connection, group)


def _describe(group: RateGroup) -> dict[str, str]:
    key = " and ".join(group.keys)
    texts = {}
    if group.targets:
        texts[f"{group.name}_exposures_log"] = f"log(1 + exposures of the same {key} on earlier days)"
    for target in group.targets:
        texts[f"{group.name}_{target}_rate"] = f"excess rate of {target} of the same {key} on earlier days"
    if group.history:
        texts[f"{group.name}_history_log"] = f"log(1 + watched videos of the same {key} before 2022-04-25)"
        for target in HISTORY_TARGETS:
            texts[f"{group.name}_history_{target}_rate"] = (
                f"excess rate of {target} of the same {key} before 2022-04-25"
            )
    return texts


def _create_excess(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the table of each training row's label minus the rate of its tab up to and including its day, for later days."""
    sums = ", ".join(f"sum({target}) AS {target}" for target in TARGETS)
    totals = ", ".join(f"sum({target}) OVER days AS {target}" for target in TARGETS)
    overall = ", ".join(
        f"sum(sum({target})) OVER (ORDER BY date) / sum(sum(n)) OVER (ORDER BY date) AS {target}" for target in TARGETS
    )
    excess = ", ".join(f"e.{target} - (t.{target} + 20 * o.{target}) / (t.n + 20) AS {target}" for target in TARGETS)
    connection.execute(
        f"""CREATE TABLE excess AS
        WITH daily AS (SELECT tab, date, count(*) AS n, {sums} FROM exposures
                       WHERE date <= {LAST_TRAINING_DAY} GROUP BY tab, date),
        tabs AS (SELECT tab, date, sum(n) OVER days AS n, {totals} FROM daily WINDOW days AS (PARTITION BY tab ORDER BY date)),
        overall AS (SELECT date, {overall} FROM daily GROUP BY date)
        SELECT e.row, e.date, e.user_id, e.video_id, e.tab, e.author, e.first_tag, e.duration_bucket, {excess}
        FROM exposures e JOIN tabs t USING (tab, date) JOIN overall o USING (date)
        ORDER BY e.row"""
    )


def _create_past(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the table of the histories' watched videos, one per row, with the two labels' excess over their means."""
    connection.execute(
        f"""CREATE TABLE past AS
        WITH watched AS (SELECT user_id, unnest(watch_seq) AS video_id, like_seq, long_watch_seq FROM history),
        labelled AS (
            SELECT user_id, video_id,
                   CAST(coalesce(list_contains(long_watch_seq, video_id), false) AS INTEGER) AS long_view,
                   CAST(coalesce(list_contains(like_seq, video_id), false) AS INTEGER) AS is_like
            FROM watched),
        means AS (SELECT avg(long_view) AS long_view, avg(is_like) AS is_like FROM labelled)
        SELECT l.user_id, l.video_id, v.author, v.tags[1] AS first_tag,
               {duration_bucket("v.video_duration")} AS duration_bucket,
               l.long_view - m.long_view AS long_view, l.is_like - m.is_like AS is_like
        FROM labelled l CROSS JOIN means m LEFT JOIN videos v USING (video_id)
        ORDER BY l.user_id, l.video_id"""
    )


def _create_rates(connection: duckdb.DuckDBPyConnection, group: RateGroup) -> None:
    keys = ", ".join(group.keys)
    selected, joins, tables = ["e.row"], [], []
    if group.targets:
        sums = ", ".join(f"sum({target}) AS {target}" for target in group.targets)
        totals = ", ".join(f"sum({target}) OVER days AS {target}" for target in group.targets)
        tables = [
            f"daily AS (SELECT {keys}, date, count(*) AS n, {sums} FROM excess GROUP BY {keys}, date)",
            f"""cumulative AS (SELECT {keys}, date, sum(n) OVER days AS n, {totals} FROM daily
            WINDOW days AS (PARTITION BY {keys} ORDER BY date))""",
        ]
        # Sums up to the latest day before the row's own; rows after the training days use the last training day.
        joins.append(f"ASOF LEFT JOIN cumulative c ON {_same(group, 'c')} AND e.date > c.date")
        selected.append(f"round(4 * ln(1 + coalesce(c.n, 0))) / 4 AS {group.name}_exposures_log")
        selected += [_rate("c", target, group, f"{target}_rate") for target in group.targets]
    if group.history:
        sums = ", ".join(f"sum({target}) AS {target}" for target in HISTORY_TARGETS)
        tables.append(f"total AS (SELECT {keys}, count(*) AS n, {sums} FROM past GROUP BY {keys})")
        joins.append(f"LEFT JOIN total p ON {_same(group, 'p')}")
        selected.append(f"round(4 * ln(1 + coalesce(p.n, 0))) / 4 AS {group.name}_history_log")
        selected += [_rate("p", target, group, f"history_{target}_rate") for target in HISTORY_TARGETS]
    connection.execute(
        f"""CREATE TABLE rates_{group.name} AS WITH {", ".join(tables)}
        SELECT {", ".join(selected)} FROM exposures e {" ".join(joins)} ORDER BY e.row"""
    )


def _same(group: RateGroup, other: str) -> str:
    return " AND ".join(f"e.{key} = {other}.{key}" for key in group.keys)


def _rate(table: str, target: str, group: RateGroup, name: str) -> str:
    rate = f"coalesce({table}.{target} / ({table}.n + {group.strength}), 0)"
    per_unit = round(1 / STEPS[target])
    return f"round({rate} * {per_unit}) / {per_unit} AS {group.name}_{name}"
