"""The map from ids to rows against dictionaries, and the numbers that depend on an id alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlrm_mtl.embeddings.unbounded.hashing import hashed, initial_rows, mix
from dlrm_mtl.embeddings.unbounded.row_map import WAYS, Eviction, RowSlots

CPU = torch.device("cpu")
MASK = (1 << 64) - 1


def mixed(value: int) -> int:
    """splitmix64's finaliser with Python's integers."""
    value &= MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


@dataclass
class Entry:
    """State of an id that has a row."""

    row: int
    last_used: int
    batches: int = 1


class Dictionaries:
    """The whole map in plain Python: one dictionary per bucket, one id after the other."""

    def __init__(self, rows: int, eviction: str) -> None:
        count = math.ceil((rows - 1) / WAYS)
        ends = [1 + n * (rows - 1) // count for n in range(count + 1)]
        self.eviction = eviction
        self.rows = [range(first, stop) for first, stop in pairwise(ends)]
        self.entries: list[dict[int, Entry]] = [{} for _ in self.rows]

    def bucket(self, number: int) -> int:
        return (mixed((number & MASK) ^ 0x9E3779B97F4A7C15) >> 32) * len(self.rows) >> 32

    def row(self, number: int) -> int:
        entry = self.entries[self.bucket(number)].get(number) if number else None
        return entry.row if entry else 0

    def worth(self, entry: Entry, step: int) -> tuple[float, int, int]:
        distance = entry.batches / (step - entry.last_used)
        first = {"lru": entry.last_used, "lfu": entry.batches, "distance_lfu": distance}[self.eviction]
        return first, entry.last_used, entry.row

    def step(self, ids: set[int], step: int) -> dict[int, int]:
        """The rows that changed hands, and whose they are now."""
        for number in ids - {0}:
            entry = self.entries[self.bucket(number)].get(number)
            if entry and entry.last_used != step:
                entry.last_used, entry.batches = step, entry.batches + 1
        changed = {}
        for number in sorted(ids - {0}):
            bucket = self.bucket(number)
            entries = self.entries[bucket]
            if number in entries:
                continue
            free = set(self.rows[bucket]) - {entry.row for entry in entries.values()}
            if free:
                row = min(free)
            else:
                idle = [(self.worth(e, step), n) for n, e in entries.items() if e.last_used != step]
                if not idle:
                    continue
                row = entries.pop(min(idle)[1]).row
            entries[number] = Entry(row, step)
            changed[row] = number
        return changed


class Everything:
    """The map on several processes, played by one."""

    def __init__(self, rows: int, eviction: Eviction, parts: int) -> None:
        self.parts = [RowSlots(rows, eviction, part, parts, CPU) for part in range(parts)]
        assert [part for own in self.parts for part in range(own.first_row, own.stop_row)] == list(range(rows))

    def step(self, ids: list[int], step: int) -> tuple[dict[int, int], dict[int, int]]:
        """Rows by id, and ids by row that changed hands."""
        rows, changed = {}, {}
        asked = torch.tensor(sorted(ids), dtype=torch.int64)
        owners = self.parts[0].owners(asked)
        for number, part in enumerate(self.parts):
            own = asked[owners == number]
            found, news = part.admit(own, step)
            rows |= dict(zip(own.tolist(), found.tolist(), strict=True))
            changed |= dict(zip(news.rows.tolist(), news.ids.tolist(), strict=True))
            assert torch.equal(part.find(own), found)
        return rows, changed


ids = st.one_of(st.integers(-40, 40), st.integers(-(2**63), 2**63 - 1))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(get_args(Eviction)),
    st.sampled_from([1, 2, 4, 7]),
    st.sampled_from([2, 9, 100, WAYS + 1, 3 * WAYS]),
    st.lists(st.sets(ids, max_size=60), max_size=8),
    st.lists(st.integers(0, 7), max_size=6),
)
def test_rows_are_those_of_plain_dictionaries(
    eviction: Eviction, parts: int, rows: int, sets: list[set[int]], again: list[int]
) -> None:
    whole, plain = Everything(rows, eviction, parts), Dictionaries(rows, eviction)
    for step, batch in enumerate([*sets, *(sets[n % len(sets)] for n in again if sets)], start=1):
        before = {number: plain.row(number) for number in batch}
        found, changed = whole.step(list(batch), step)
        assert changed == plain.step(batch, step)
        assert found == {number: plain.row(number) for number in batch}
        taken = [row for row in found.values() if row]
        assert len(set(taken)) == len(taken)
        assert all(found[number] == row for number, row in before.items() if row)
        assert found.get(0, 0) == 0
        assert whole.step(list(batch), step) == (found, {})  # once more in the same step: nothing happens


@pytest.mark.parametrize("eviction", get_args(Eviction))
def test_crowded_buckets(eviction: Eviction) -> None:
    whole, plain = Everything(WAYS // 2 * 3, eviction, 2), Dictionaries(WAYS // 2 * 3, eviction)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 25):
        skewed = torch.rand(150, generator=generator) ** 4 * 2000
        batch = set((skewed.long() * 7_919_111_317).tolist())
        changed = plain.step(batch, step)
        found, news = whole.step(list(batch), step)
        assert news == changed
        assert found == {number: plain.row(number) for number in batch}
    used = sum(int((part.last_used > 0).sum()) for part in whole.parts)
    assert used == WAYS // 2 * 3 - 1  # all but row 0


def state(part: RowSlots) -> list[Tensor]:
    return [part.ids.clone(), part.last_used.clone(), part.batches.clone()]


def test_a_step_can_be_taken_back() -> None:
    part = RowSlots(40, "lfu", 0, 1, CPU)
    for step in range(1, 6):
        part.admit(torch.arange(step, 30 + 5 * step), step)
        part.keep()
    before = state(part)
    part.admit(torch.arange(100, 125), 6)
    part.admit(torch.arange(20, 60), 6)
    assert not all(torch.equal(a, b) for a, b in zip(before, state(part), strict=True))
    part.undo()
    assert all(torch.equal(a, b) for a, b in zip(before, state(part), strict=True))


def test_looking_up_changes_nothing() -> None:
    part = RowSlots(1000, "lru", 0, 1, CPU)
    known, _ = part.admit(torch.arange(1, 300), 1)
    before = state(part)
    found = part.find(torch.arange(-20, 400))
    assert torch.equal(found[21:320], known)
    assert not found[:21].any()
    assert not found[320:].any()
    assert all(torch.equal(a, b) for a, b in zip(before, state(part), strict=True))


def test_hashes() -> None:
    numbers = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    assert [value & MASK for value in mix(torch.tensor(numbers)).tolist()] == [mixed(n) for n in numbers]
    for some in (torch.arange(100_000), torch.arange(100_000) << 20, -torch.arange(100_000)):
        counts = hashed(some, 100).bincount(minlength=100).double()
        assert len(counts) == 100
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 160  # chi squared with 99 degrees of freedom: p = 1e-4


def test_initial_rows_are_independent_normal_draws() -> None:
    some = torch.arange(-20_000, 20_000)
    rows = initial_rows(some, "3/user", 0.5, 0, 8)
    assert rows.dtype == torch.float32
    flat = rows.flatten().double() / 0.5
    moments = [float((flat**power).mean()) for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)
    correlations = torch.corrcoef(torch.cat([rows, initial_rows(some, "4/user", 0.5, 0, 8)], dim=1).T)
    assert float((correlations - torch.eye(16)).abs().max()) < 0.03
    assert float(torch.corrcoef(torch.stack([rows[:-1, 0], rows[1:, 0]]))[0, 1]) < 0.03
    assert torch.equal(rows[:, 4:], initial_rows(some, "3/user", 0.5, 4, 4))
    assert torch.equal(rows[7:9], initial_rows(some[7:9], "3/user", 0.5, 0, 8))
    assert not initial_rows(some, "3/user", 0.0, 0, 4).any()
