"""Filters on interaction logs in DuckDB: the k-core of a table of pairs, and the parts that hold-out pairs go to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import duckdb

from dlrm_mtl.prepare.common.duck import one_row


@dataclass(frozen=True)
class CoreRound:
    """What is left after a round of k-core filtering; round 0 is before the first."""

    users: int
    items: int
    pairs: int

    def __str__(self) -> str:
        return f"{self.users:,} users, {self.items:,} items, {self.pairs:,} pairs"


def k_core(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    user_items: int,
    item_users: int,
    told: Callable[[int, CoreRound], None] = lambda round, left: None,
) -> list[CoreRound]:
    """Shrink ``table`` (user, item; distinct) until every user has ``user_items`` items and every item ``item_users`` users.

    A round drops users, then items; dropping one makes others fall short, so rounds go on until one drops nothing. What is left
    is the largest such set, whatever the order of dropping. Returns what was left after each round, the first entry being
    before; ``told`` hears of each.
    """
    rounds = [_count(connection, table)]
    told(0, rounds[0])
    while True:
        for key, least in (("user", user_items), ("item", item_users)):
            connection.execute(
                f"""CREATE TABLE {table}_left AS SELECT * FROM {table}
                WHERE {key} IN (SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) >= {int(least)})"""
            )
            connection.execute(f"DROP TABLE {table}")
            connection.execute(f"ALTER TABLE {table}_left RENAME TO {table}")
        left = _count(connection, table)
        if left == rounds[-1]:
            return rounds
        rounds.append(left)
        told(len(rounds) - 1, left)


def part_of_event(target: str, leakage_filter: bool) -> str:
    """SQL for the part (0 training, 1 validation, 2 test) of an event ``e`` left-joined with the held-out target pairs ``h``.

    A held-out pair's target events go to its part. The leakage filter takes its auxiliary events out of training as well:
    that a user put an item into the cart all but gives away that it was bought. ``target`` is SQL that says whether the event
    is of the target behaviour.
    """
    held = "h.part IS NOT NULL" if leakage_filter else f"h.part IS NOT NULL AND {target}"
    return f"CASE WHEN {held} THEN h.part ELSE 0 END"


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> CoreRound:
    query = f"SELECT count(DISTINCT user), count(DISTINCT item), count(*) FROM {table}"
    return CoreRound(*one_row(connection, query))
