"""Splits do not depend on threads, keep users and times together, and have the shares asked for."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import Any

import duckdb
import pytest

from dlrm_mtl.prepare.common.splits import random_split, range_split, time_cuts, time_split

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
ROWS = 20_000


def rows(expression: str, threads: int = 1) -> list[tuple[Any, ...]]:
    with duckdb.connect(config={"threads": threads}) as connection:
        query = f"SELECT i, {expression} FROM (SELECT i, i % 97 AS u, i // 10 AS t FROM range({ROWS}) r(i)) ORDER BY i"
        return connection.execute(query).fetchall()


def test_random_rows() -> None:
    got = rows(random_split("i", SHARES, seed=3))
    assert got == rows(random_split("i", SHARES, seed=3), threads=4)
    assert got != rows(random_split("i", SHARES, seed=4))
    counts = Counter(split for _, split in got)
    for name, share in SHARES.items():
        assert counts[name] / ROWS == pytest.approx(share, abs=0.015)
    for row, split in got[:500]:
        drawn = int(hashlib.md5(f"3:split:{row}".encode()).hexdigest()[:15], 16) / 2**60
        assert split == ("train" if drawn < 0.8 else "validation" if drawn < 0.9 else "test")


def test_whole_users() -> None:
    splits = defaultdict(set)
    for row, split in rows(random_split("u", SHARES)):
        splits[row % 97].add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert {next(iter(found)) for found in splits.values()} == set(SHARES)


def test_time_by_cuts() -> None:
    for row, split in rows(time_split("t", {"validation": "500", "test": "1500"})):
        assert split == ("train" if row // 10 < 500 else "validation" if row // 10 < 1500 else "test")


def test_time_by_shares() -> None:
    with duckdb.connect() as connection:
        connection.execute(
            f"CREATE TABLE x AS SELECT i, TIMESTAMP '2024-01-01' + to_seconds(i // 7) AS t FROM range({ROWS}) r(i)"
        )
        cuts = time_cuts(connection, "x", "t", SHARES)
        assert list(cuts) == ["validation", "test"]
        found = connection.execute(
            f"SELECT {time_split('t', cuts)} AS s, count(*), min(t), max(t) FROM x GROUP BY s"
        ).fetchall()
    spans = {name: (count, first, last) for name, count, first, last in found}
    for name, share in SHARES.items():
        assert spans[name][0] == pytest.approx(share * ROWS, abs=7)
    assert spans["train"][2] < spans["validation"][1]
    assert spans["validation"][2] < spans["test"][1]


def test_ranges() -> None:
    got = rows(range_split("i", [("train", 5), ("test", 9), ("train", ROWS)]))
    assert [split for _, split in got[:11]] == ["train"] * 5 + ["test"] * 4 + ["train"] * 2


def test_one_split_takes_all() -> None:
    assert {split for _, split in rows(random_split("i", {"train": 1.0}))} == {"train"}
