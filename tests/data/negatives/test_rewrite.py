"""Negatives in batches, beside plain Python."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.data.batch import Batch
from tests.data.negatives.shop import ALONG, reader, write
from tests.data.negatives.test_drawn_rows import splitmix
from tests.data.reading import actual

BINARY = [0, 1]
"""Columns of click and buy."""
KEYS = ["row", "user", "item", "category", "tags", "history"]
EMPTY: dict[str, Any] = {**{key: [] for key in KEYS}, "dense": [0.0, 0.0], "labels": [0.0] * 3, "weights": [0.0] * 3}
WAYS: list[dict[str, Any]] = [
    {"by": by, "known": known, **({"user": "user"} if known == "avoid" else {})}
    for by, known in itertools.product(["uniform", "popularity", "in_batch"], ["allow", "avoid"])
]
ways = st.sampled_from(WAYS)
contents = st.lists(st.lists(st.sampled_from([0, 1, 7, 40]), max_size=4), min_size=1, max_size=3).filter(
    lambda content: sum(map(sum, content)) > 0
)


def rows_of(batches: list[Batch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in actual(batch)]


def draws(row: dict[str, Any]) -> bool:
    """True if a row has a positive binary label that counts."""
    return any(row["labels"][column] > 0 and row["weights"][column] > 0 for column in BINARY)


def known_pairs(rows: list[dict[str, Any]]) -> set[tuple[int, int]]:
    return {(row["user"], row["item"]) for row in rows if row["user"] and row["item"] and (row["click"] or row["buy"])}


def belongings(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """By item, what its last row says of it, as it looks in a batch."""
    result = {}
    for row in rows:
        if row["item"]:
            result[row["item"]] = {
                "category": [] if row["category"] is None else [row["category"]],
                "tags": row["tags"] or [],
                "price": 0.0 if row["price"] is None else (row["price"] - 10.0) / 2.0,
            }
    return result


@settings(max_examples=60, deadline=None)
@given(
    content=contents,
    way=ways,
    each=st.integers(1, 3),
    along=st.sets(st.sampled_from(ALONG)),
    lane_batch=st.sampled_from([1, 3, 16]),
    weight=st.sampled_from([None, "importance"]),
    epoch=st.integers(0, 2),
    seed=st.integers(0, 5),
)
def test_what_the_rows_of_a_batch_hold(
    content: list[list[int]],
    way: dict[str, Any],
    each: int,
    along: set[str],
    lane_batch: int,
    weight: str | None,
    epoch: int,
    seed: int,
) -> None:
    options: dict[str, Any] = {"batch_size": 4 * lane_batch, "weight": weight, "seed": seed}
    with tempfile.TemporaryDirectory() as name:
        rows = write(Path(name) / "set", content, seed)
        plain = list(reader(Path(name) / "set", None, **options).epoch(epoch))
        wanted = {**way, "each": each, "along": sorted(along)}
        loader = reader(Path(name) / "set", wanted, **options)
        batches = list(loader.epoch(epoch))
    assert len(batches) == len(plain)
    assert {batch.size for batch in batches} == {4 * lane_batch * (1 + each)} == {loader.local_batch_size}
    known, of_item = known_pairs(rows) if way["known"] == "avoid" else set(), belongings(rows)
    for before, after in zip(plain, batches, strict=True):
        observed, all_rows = actual(before), actual(after)
        assert all_rows[:: 1 + each] == observed
        for place, row in enumerate(observed):
            lane = observed[place // lane_batch * lane_batch :][:lane_batch]
            for drawn in all_rows[place * (1 + each) + 1 : (place + 1) * (1 + each)]:
                if not draws(row):
                    assert drawn == EMPTY
                    continue
                user, own = next(iter(row["user"]), None), next(iter(row["item"]), None)
                pool = (
                    set(of_item) if way["by"] != "in_batch" else {other["item"][0] for other in lane if other["item"]}
                )
                possible = {item for item in pool if item and item != own and (user, item) not in known}
                if not possible:
                    assert drawn == EMPTY
                    continue
                check_negative(drawn, row, possible, lane if way["by"] == "in_batch" else of_item, along)


def check_negative(
    drawn: dict[str, Any], row: dict[str, Any], possible: set[int], source: Any, along: set[str]
) -> None:
    (item,) = drawn["item"]
    assert item in possible
    for key in ("row", "user", "history", *(name for name in ("category", "tags") if name not in along)):
        assert drawn[key] == row[key]
    if isinstance(source, dict):
        candidates = [source[item]]
    else:
        candidates = [{**other, "price": other["dense"][0]} for other in source if other["item"] == [item]]
    assert any(
        all(drawn[name] == other[name] for name in along - {"price"})
        and drawn["dense"][0] == (pytest.approx(other["price"]) if "price" in along else row["dense"][0])
        for other in candidates
    )
    assert drawn["dense"][1] == row["dense"][1]
    assert drawn["labels"] == [0.0, 0.0, 0.0]
    assert drawn["weights"] == [row["weights"][0], row["weights"][1], 0.0]


@settings(max_examples=12, deadline=None)
@given(content=contents, way=ways, lane_batch=st.integers(1, 5), epoch=st.integers(0, 1))
def test_the_global_batch_is_the_same_on_any_number_of_processes(
    content: list[list[int]], way: dict[str, Any], lane_batch: int, epoch: int
) -> None:
    wanted = {**way, "each": 2, "along": ALONG}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        write(folder, content)
        alone = rows_of(list(reader(folder, wanted, batch_size=4 * lane_batch).epoch(epoch)))
        for world_size in (2, 4):
            parts = [
                list(reader(folder, wanted, batch_size=4 * lane_batch, rank=rank, world_size=world_size).epoch(epoch))
                for rank in range(world_size)
            ]
            assert alone == rows_of([batch for step in zip(*parts, strict=True) for batch in step])


@pytest.mark.parametrize("way", WAYS)
def test_starting_at_a_step_gives_what_iterating_there_gives(tmp_path: Path, way: dict[str, Any]) -> None:
    write(tmp_path / "set", [[40, 3, 0, 17], [60]])
    loader = reader(tmp_path / "set", {**way, "each": 2, "along": ALONG})
    batches = list(loader.epoch(3))
    for start in range(loader.steps_per_epoch + 1):
        assert rows_of(list(loader.epoch(3, start))) == rows_of(batches[start:])


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_the_batch_size_plays_no_part(tmp_path: Path, by: str) -> None:
    write(tmp_path / "set", [[160]])

    def drawn(batch_size: int) -> dict[int, list[Any]]:
        way = {"by": by, "known": "avoid", "user": "user", "each": 2}
        rows = rows_of(list(reader(tmp_path / "set", way, batch_size=batch_size).epoch(1)))
        starts = [place for place in range(0, len(rows), 3) if rows[place]["row"]]
        return {rows[place]["row"][0]: [rows[place + 1], rows[place + 2]] for place in starts}

    assert len(drawn(16)) == 160
    assert drawn(16) == drawn(40) == drawn(4)


@pytest.mark.parametrize("by", ["uniform", "popularity", "in_batch"])
def test_epochs_rows_rows_and_seeds_draw_anew(tmp_path: Path, by: str) -> None:
    write(tmp_path / "set", [[320]], observed_only=True)

    def drawn(seed: int, epoch: int) -> list[list[int]]:
        loader = reader(tmp_path / "set", {"by": by, "each": 3}, seed=seed, shuffle=False, batch_size=64)
        rows = rows_of(list(loader.epoch(epoch)))
        return [[*rows[place]["item"]] for place in range(len(rows)) if place % 4]

    first = drawn(0, 0)
    assert first == drawn(0, 0)
    for other in (drawn(0, 1), drawn(1, 0)):
        same = np.mean([one == two for one, two in zip(first, other, strict=True)])
        assert same < 0.3, "about what chance gives"


def chained(seed: int, *keys: int) -> int:
    mask = 2**64 - 1
    state = splitmix(seed & mask)
    for key in keys:
        state = splitmix(state ^ ((((key & mask) + 0x9E3779B97F4A7C15) * 0xD1342543DE82EF95) & mask))
    return state


def share(seed: int, *keys: int) -> float:
    return (chained(seed, *keys) >> 11) / 2**53


@pytest.mark.parametrize("way", WAYS)
def test_each_draw_is_the_documented_function(tmp_path: Path, way: dict[str, Any]) -> None:
    """The whole law written out for one row after the other, except for users who know nearly everything."""
    rows = write(tmp_path / "set", [[150]], seed=2)
    counts = Counter(row["item"] for row in rows if row["item"])
    known = known_pairs(rows) if way["known"] == "avoid" else set()
    each, per_lane, epoch, seed = 2, 8, 3, 7
    loader = reader(tmp_path / "set", {**way, "each": each}, batch_size=4 * per_lane, seed=seed)
    compared = 0
    for step, batch in enumerate(loader.epoch(epoch)):
        all_rows = actual(batch)
        observed = all_rows[:: 1 + each]
        for place, row in enumerate(observed):
            if not draws(row):
                continue
            user, own = next(iter(row["user"]), 0), next(iter(row["item"]), None)
            lane = observed[place // per_lane * per_lane :][:per_lane]
            for slot in range(each):
                (item,) = all_rows[place * (1 + each) + 1 + slot]["item"] or [None]
                for attempt in range(32):
                    number = share(
                        seed, (place // per_lane << 40) + step * per_lane + place % per_lane, epoch, slot, attempt
                    )
                    tried = law(way["by"], number, counts, lane, own)
                    if tried is None or (tried != own and (user, tried) not in known):
                        assert item == tried
                        compared += 1
                        break
    assert compared > 100


def law(by: str, number: float, counts: Counter[int], lane: list[dict[str, Any]], own: int | None) -> int | None:
    if by == "in_batch":
        others = sorted(other["item"][0] for other in lane if other["item"] not in ([], [0], [own]))
        return others[int(number * len(others))] if others else None
    weights = {item: counts[item] ** (0.75 if by == "popularity" else 0.0) for item in sorted(counts)}
    reached = 0.0
    for item, weight in weights.items():
        reached += weight
        if number * sum(weights.values()) < reached:
            return item
    return max(weights)


@pytest.mark.parametrize(("by", "exponent"), [("uniform", 1.0), ("popularity", 0.75), ("popularity", 1.5)])
def test_items_are_drawn_in_proportion_to_their_weights(tmp_path: Path, by: str, exponent: float) -> None:
    """Pearson's statistic of each own item's draws, over all epochs, stays below its mean + 5 standard deviations."""
    rows = write(tmp_path / "set", [[400]], observed_only=True)
    counts = Counter(row["item"] for row in rows if row["item"])
    weights = {item: float(count) ** (exponent if by == "popularity" else 0.0) for item, count in counts.items()}
    loader = reader(tmp_path / "set", {"by": by, "exponent": exponent, "each": 8}, batch_size=64)
    drawn: dict[int, Counter[int]] = {}
    for epoch in range(15):
        for row in range(0, len(all_rows := rows_of(list(loader.epoch(epoch)))), 9):
            if all_rows[row]["item"] not in ([], [0]):
                own = all_rows[row]["item"][0]
                drawn.setdefault(own, Counter()).update(negative["item"][0] for negative in all_rows[row + 1 : row + 9])
    statistic, freedom = 0.0, 0
    for own, found in drawn.items():
        total = sum(weight for item, weight in weights.items() if item != own)
        expected = {item: found.total() * weight / total for item, weight in weights.items() if item != own}
        assert set(found) <= set(expected)
        enough = {item: count for item, count in expected.items() if count >= 5}
        statistic += sum((found[item] - count) ** 2 / count for item, count in enough.items())
        freedom += len(enough)
    assert freedom > 100
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def test_draws_in_a_batch_follow_the_rows_of_the_lane(tmp_path: Path) -> None:
    """With a lane's whole epoch in one slice: every other row with another item comes as often as any other."""
    rows = write(tmp_path / "set", [[40]], observed_only=True)
    loader = reader(tmp_path / "set", {"by": "in_batch", "each": 10, "along": ["tags"]}, lanes=1, batch_size=40)
    found: Counter[int] = Counter()
    for epoch in range(40):
        (batch,) = loader.epoch(epoch)
        all_rows = actual(batch)
        for place in range(0, len(all_rows), 11):
            if all_rows[place]["item"] == [1]:
                found.update(row["item"][0] for row in all_rows[place + 1 : place + 11])
    counts = Counter(row["item"] for row in rows if row["item"] and row["item"] != 1)
    for item, count in counts.items():
        expected = count / counts.total()
        assert abs(found[item] / found.total() - expected) < 5 * (expected / found.total()) ** 0.5


def test_users_who_know_all_but_one_item_get_that_one(tmp_path: Path) -> None:
    write(tmp_path / "set", [[1]])
    rows = 29
    columns = {
        "row": np.arange(1, rows + 1),
        "user": np.where(np.arange(rows) == 7, 2, 1),
        "item": np.arange(1, rows + 1),
        "category": np.arange(rows) % 6,
        "tags": pa.array([[1]] * rows),
        "history": pa.array([[1]] * rows),
        "price": np.ones(rows),
        "hour": np.ones(rows),
        "click": np.ones(rows),
        "buy": np.zeros(rows),
        "seconds": np.ones(rows),
    }
    pq.write_table(pa.table(columns), tmp_path / "set" / "train" / "part-000.parquet")
    for by in ("uniform", "popularity", "in_batch"):
        way = {"by": by, "known": "avoid", "user": "user", "each": 3}
        loader = reader(tmp_path / "set", way, lanes=1, batch_size=32)
        (batch,) = loader.epoch(0)
        for place, row in enumerate(all_rows := actual(batch)):
            if place % 4 == 0 and row["user"] == [1]:
                assert [negative["item"] for negative in all_rows[place + 1 : place + 4]] == [[8]] * 3


def test_labels_that_a_run_does_not_read_play_no_part(tmp_path: Path) -> None:
    rows = write(tmp_path / "set", [[200]])
    way = {"known": "avoid", "user": "user", "each": 1}
    loader = reader(tmp_path / "set", way, labels=["buy"])
    all_rows = rows_of(list(loader.epoch(0)))
    observed = {row["row"]: row for row in rows}
    for row, negative in zip(all_rows[::2], all_rows[1::2], strict=True):
        assert bool(negative["item"]) == (bool(row["row"]) and observed[row["row"][0]]["buy"] == 1)
