"""Division of events into splits: the target's k-core, held-out pairs or the last days."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.common.duck import one_row
from dlrm_mtl.prepare.common.io import Progress
from dlrm_mtl.prepare.common.k_core import k_core, part_of_event
from dlrm_mtl.prepare.common.splits import random_split
from dlrm_mtl.prepare.userbehavior.log import BEHAVIOURS, DAY, DAYS, FIRST_SECOND


@dataclass(frozen=True)
class Division:
    """Division of the events ``e``."""

    part: str
    """SQL of an event's part: 0 training, 1 validation, 2 test."""
    about: tuple[str, str, str]
    """Descriptions of each split's events."""
    join: str = ""
    """SQL that joins the held-out pairs ``h`` to the events, if any are held out."""


def by_time() -> Division:
    """Division by time: the last two days, one each."""
    last = FIRST_SECOND + (DAYS - 1) * DAY
    part = f"CASE WHEN e.time >= {last} THEN 2 WHEN e.time >= {last - DAY} THEN 1 ELSE 0 END"
    return Division(part, ("2017-11-25 to 2017-12-01 (China)", "2017-12-02 (China)", "2017-12-03 (China)"))


def by_pairs(
    connection: duckdb.DuckDBPyConnection,
    wanted: str,
    target: str,
    shares: tuple[float, float],
    seed: int,
    *,
    leakage_filter: bool,
    given: bool,
    notes: list[str],
) -> Division:
    """Division that holds out random pairs of the target behaviour.

    Args:
        connection: connection to the database with the table events.
        wanted: SQL condition of the events to use.
        target: target behaviour.
        shares: fractions of its pairs for validation and test.
        seed: seed of the choice.
        leakage_filter: True to hold out the pairs' other events, too.
        given: True if the test pairs are those of the table given.
        notes: list that gets a note with the number of these events.
    """
    validation_share, test_share = shares
    goal = BEHAVIOURS.index(target)
    _hold_out(connection, wanted, goal, validation_share, test_share, seed, given)
    if leakage_filter:
        query = f"SELECT count(*) FROM events e JOIN held h USING (user, item) WHERE {wanted} AND e.behaviour <> {goal}"
        (removed,) = one_row(connection, query)
        notes.append(f"leakage filter: {removed:,} other events of held-out pairs taken out of training")
    about = (
        f"all pairs but the held-out ones, with the rest of the pairs of {target}",
        f"pairs of {target}, random {validation_share:.0%}{' of the rest' if given else ''}, seed {seed}",
        f"pairs of {target}, {'the published test pairs' if given else f'random {test_share:.0%}'}",
    )
    join = "LEFT JOIN held h ON h.user = e.user AND h.item = e.item"
    return Division(part_of_event(f"e.behaviour = {goal}", leakage_filter), about, join)


def keep_core(
    connection: duckdb.DuckDBPyConnection,
    wanted: str,
    goal: int,
    user_items: int,
    item_users: int,
    notes: list[str],
    progress: Progress,
) -> str:
    """Restrict ``wanted`` (SQL over events ``e``) to the users and items of the target's k-core, if one is asked for."""
    if user_items <= 1 and item_users <= 1:
        return wanted
    progress("k-core", 0.2)
    connection.execute(
        f"CREATE TABLE core AS SELECT DISTINCT user, item FROM events e WHERE {wanted} AND behaviour = {goal}"
    )
    rounds = k_core(
        connection,
        "core",
        user_items,
        item_users,
        lambda round, left: progress(f"k-core, round {round}: {left}", 0.2),
    )
    if rounds[-1].pairs == 0:
        raise UserError(
            f"prepare userbehavior: no pair is left with --user-items {user_items} --item-users {item_users}, of "
            f"{rounds[0].pairs:,} pairs of the target; lower them."
        )
    told = "; ".join(f"round {number}: {left}" for number, left in enumerate(rounds))
    notes.append(f"k-core of the target's pairs (users >= {user_items} items, items >= {item_users} users): {told}")
    return f"{wanted} AND e.user IN (SELECT user FROM core) AND e.item IN (SELECT item FROM core)"


def _hold_out(
    connection: duckdb.DuckDBPyConnection,
    wanted: str,
    goal: int,
    validation_share: float,
    test_share: float,
    seed: int,
    given: bool,
) -> None:
    """Make the table held (user, item, part): pairs of the target that are validation (1) or test (2).

    With ``given``, test pairs are in the table given, and validation pairs are drawn from the rest.
    """
    shares = {"1": validation_share} if given else {"1": validation_share, "2": test_share}
    drawn = random_split("e.user || ':' || e.item", {**shares, "0": 1 - sum(shares.values())}, seed=seed)
    known = " UNION ALL SELECT user, item, CAST(2 AS TINYINT) FROM given" if given else ""
    unknown = "AND NOT EXISTS (FROM given g WHERE g.user = e.user AND g.item = e.item)" if given else ""
    connection.execute(
        f"""CREATE TABLE held AS
        SELECT * FROM (SELECT DISTINCT e.user, e.item, CAST({drawn} AS TINYINT) AS part FROM events e
                       WHERE {wanted} AND e.behaviour = {goal} {unknown}) WHERE part > 0 {known}"""
    )
