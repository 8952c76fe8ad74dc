"""k-core filtering beside plain Python."""

from __future__ import annotations

from collections import Counter

import duckdb
import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.prepare.common.k_core import CoreRound, k_core, part_of_event

PAIRS = st.sets(st.tuples(st.integers(0, 12), st.integers(0, 9)), max_size=70)


def table(pairs: set[tuple[int, int]]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE pairs (user INTEGER, item INTEGER)")
    if pairs:
        connection.executemany("INSERT INTO pairs VALUES (?, ?)", sorted(pairs))
    return connection


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, user_items=st.integers(0, 4), item_users=st.integers(0, 4))
def test_core_is_the_largest_set_that_satisfies_both_rules(
    pairs: set[tuple[int, int]], user_items: int, item_users: int
) -> None:
    with table(pairs) as connection:
        rounds = k_core(connection, "pairs", user_items, item_users)
        left = set(connection.execute("FROM pairs").fetchall())
    # One pair at a time, in no particular order, until no pair breaks a rule: another route to the same set.
    wanted = set(pairs)
    while True:
        users, items = Counter(user for user, _ in wanted), Counter(item for _, item in wanted)
        broken = {(u, i) for u, i in wanted if users[u] < user_items or items[i] < item_users}
        if not broken:
            break
        wanted.discard(min(broken))
    assert left == wanted
    for entry, first in ((rounds[0], pairs), (rounds[-1], left)):
        assert entry == CoreRound(len({u for u, _ in first}), len({i for _, i in first}), len(first))


@settings(max_examples=30, deadline=None)
@given(pairs=PAIRS, k=st.integers(1, 4))
def test_equal_thresholds_are_the_k_core_of_the_graph(pairs: set[tuple[int, int]], k: int) -> None:
    with table(pairs) as connection:
        k_core(connection, "pairs", k, k)
        left = set(connection.execute("FROM pairs").fetchall())
    graph = networkx.Graph((f"u{user}", f"i{item}") for user, item in pairs)
    core = networkx.k_core(graph, k)
    assert left == {(user, item) for user, item in pairs if core.has_edge(f"u{user}", f"i{item}")}


def test_every_round_is_told() -> None:
    # A chain: each round drops its end.
    pairs = {(n, n) for n in range(4)} | {(n, n + 1) for n in range(4)}
    told = []
    with table(pairs) as connection:
        rounds = k_core(connection, "pairs", 2, 2, lambda number, left: told.append((number, str(left))))
    assert [entry.pairs for entry in rounds] == [8, 6, 2, 0]
    assert told == [(number, str(entry)) for number, entry in enumerate(rounds)]
    assert told[0] == (0, "4 users, 5 items, 8 pairs")


@pytest.mark.parametrize("leakage_filter", [True, False])
@pytest.mark.parametrize(("held", "is_target"), [(None, True), (None, False), (1, True), (1, False), (2, True)])
def test_parts_of_events(leakage_filter: bool, held: int | None, is_target: bool) -> None:
    query = f"SELECT {part_of_event('e.target', leakage_filter)} FROM (SELECT ? AS target) e, (SELECT ?::INT AS part) h"
    (part,) = duckdb.execute(query, [is_target, held]).fetchone() or ()
    if held is None or not (is_target or leakage_filter):
        assert part == 0
    else:
        assert part == held
