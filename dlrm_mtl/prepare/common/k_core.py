"""Filters of interaction logs in DuckDB: the k-core of a table of pairs, and the splits of held-out pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import duckdb

from dlrm_mtl.prepare.common.duck import one_row


@dataclass(frozen=True)
class CoreRound:
    """Counts after a round of k-core filtering; round 0 is before the first."""

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

    A round drops users, then items. Dropping one may leave others with too few, so rounds continue until one drops nothing.
    The result is the largest such set, for any order of dropping. Returns the counts after each round, beginning with those
    before; ``told`` is called with each.
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

    A held-out pair's target events go to its part. The leakage filter also removes its auxiliary events from training: an
    item in the cart almost reveals the purchase. ``target`` is an SQL condition for events of the target behaviour.
    """
    held = "h.part IS NOT NULL" if leakage_filter else f"h.part IS NOT NULL AND {target}"
    return f"CASE WHEN {held} THEN h.part ELSE 0 END"


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> CoreRound:
    query = f"SELECT count(DISTINCT user), count(DISTINCT item), count(*) FROM {table}"
    return CoreRound(*one_row(connection, query))
