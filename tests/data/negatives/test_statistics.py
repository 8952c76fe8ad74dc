"""Statistics for negatives, compared with plain Python, whole and in shares."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.negatives import statistics
from dlrm_mtl.data.negatives.known_pairs import KnownPairs
from dlrm_mtl.data.negatives.statistics import ItemStatistics, merge, read_statistics
from tests.data.negatives.shop import ALONG, LABELS, data_config, write

contents = st.lists(st.lists(st.sampled_from([0, 1, 7, 40]), max_size=4), min_size=1, max_size=3).filter(
    lambda content: sum(map(sum, content)) > 0
)


@settings(max_examples=40, deadline=None)
@given(content=contents, parts=st.sampled_from([1, 2, 3, 8]), merge_at=st.sampled_from([1, 1 << 20]))
def test_shares_together_are_the_whole(content: list[list[int]], parts: int, merge_at: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MERGE_AT", merge_at)
        rows = write(Path(name) / "set", content)
        split = open_dataset(Path(name) / "set").split("train")
        config = data_config(Path(name) / "set", {"along": ALONG, "known": "avoid", "user": "user"})
        found = merge(read_statistics(split, config, LABELS, part, parts) for part in range(parts))
    assert found is not None
    counts = Counter(row["item"] for row in rows if row["item"])
    assert dict(zip(found.items.tolist(), found.counts.tolist(), strict=True)) == counts
    assert found.items.tolist() == sorted(counts)
    last = {row["item"]: row for row in rows}
    for place, item in enumerate(found.items.tolist()):
        assert listed(found, "category", place) == [last[item]["category"]] * (last[item]["category"] is not None)
        assert listed(found, "tags", place) == (last[item]["tags"] or [])
        price = 0.0 if last[item]["price"] is None else (last[item]["price"] - 10.0) / 2.0
        assert found.along_dense["price"][place] == pytest.approx(price)
    known = KnownPairs(found.pairs)
    users, items = (axis.ravel() for axis in np.meshgrid(np.arange(14), np.arange(32)))
    pairs = {(row["user"], row["item"]) for row in rows if row["user"] and row["item"] and (row["click"] or row["buy"])}
    assert known(users, items).tolist() == [pair in pairs for pair in zip(users.tolist(), items.tolist(), strict=True)]
    assert len(known) == len(pairs)


def listed(found: ItemStatistics, name: str, place: int) -> list[int]:
    lists = found.along[name]
    ids: list[int] = lists.values[lists.offsets[place] : lists.offsets[place + 1]].tolist()
    return ids


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrm_mtl.data.dataset import DataFile

    write(tmp_path / "set", [[40], [20]])
    split = open_dataset(tmp_path / "set").split("train")
    read: list[set[str]] = []
    inner = DataFile.read_group
    monkeypatch.setattr(
        DataFile, "read_group", lambda *arguments: (read.append(set(arguments[3])), inner(*arguments))[1]
    )

    def columns(**negatives: object) -> list[set[str]]:
        read.clear()
        read_statistics(split, data_config(tmp_path / "set", negatives), LABELS)
        return read

    assert columns() == [{"item"}] * 2
    assert columns(along=["tags"], by="popularity") == [{"item", "tags"}] * 2
    assert columns(known="avoid", user="user") == [{"item", "user", "click", "buy"}] * 2
    assert columns(known="avoid", user="user", by="in_batch", along=["tags"]) == [{"item", "user", "click", "buy"}] * 2
    assert columns(by="in_batch", along=["tags"]) == []


@given(
    pairs=st.sets(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)), max_size=200),
    others=st.sets(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3)), max_size=20),
)
def test_sets_of_pairs(pairs: set[tuple[int, int]], others: set[tuple[int, int]]) -> None:
    columns = np.array([*pairs], dtype=np.int64).reshape(-1, 2)
    known = KnownPairs.of(np.repeat(columns[:, 0], 2), np.repeat(columns[:, 1], 2))
    asked = [*pairs, *others]
    users, items = np.array(asked, dtype=np.int64).reshape(-1, 2).T
    assert known(users, items).tolist() == [pair in pairs for pair in asked]
    assert len(known) == len(pairs)


def test_a_large_set_of_pairs() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 5000, 300_000), rng.integers(0, 700, 300_000)
    known, pairs = KnownPairs.of(users, items), set(zip(users.tolist(), items.tolist(), strict=True))
    users, items = rng.integers(0, 6000, 50_000), rng.integers(0, 800, 50_000)
    assert known(users, items).tolist() == [pair in pairs for pair in zip(users.tolist(), items.tolist(), strict=True)]
