"""Training data that grows: every file exactly once, in the order of names."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.growing import Consumed, NextRound, next_round
from dlrm_mtl.data.reader import BatchLoader
from tests.data.reading import LABELS, row_numbers, table, write

CONFIG = DataConfig(path="unused", batch_size=8, evaluation_batch_size=8, lanes=4, block_rows=4)


def add(folder: Path, name: str, rows: int, first: int) -> Path:
    path = folder / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows, first=first), path)
    return path


def remembered(consumed: Consumed) -> Consumed:
    """State as restored from a checkpoint."""
    return Consumed.from_state(json.loads(json.dumps(consumed.state())))


def names(found: NextRound) -> list[str]:
    return [Path(file.path).name for file in found.split.files] if found.split else []


def rows(found: NextRound, consumed: Consumed, start: int = 0, world: Sequence[int] = (0,)) -> list[list[int]]:
    """By step: the rows that training sees."""
    assert found.split is not None
    parts = [
        BatchLoader(found.split, CONFIG, LABELS, rank=rank, world_size=len(world)).epoch(consumed.rounds, start)
        for rank in world
    ]
    return [
        [number for part in step for number in row_numbers(part) if number is not None]
        for step in zip(*parts, strict=True)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set", [[20], [5, 5]])
    return tmp_path / "set"


@settings(max_examples=15, deadline=None)
@given(
    arrivals=st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=4),
    stops=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    worlds=st.lists(st.sampled_from([1, 2, 4]), min_size=8, max_size=8),
)
def test_every_row_once_whatever_arrives_and_wherever_it_is_killed(
    arrivals: list[list[int]], stops: list[int], worlds: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        write(folder, [[3]])
        consumed, seen, total, files = Consumed(), [], 3, 0
        for arrival, stop in zip([[], *arrivals], [*stops, 2], strict=False):
            for count in arrival:
                add(folder, f"part-{1000 + files}.parquet", count, first=total)
                total, files = total + count, files + 1
            found = next_round(open_dataset(folder), "train", consumed)
            if found.split is None:
                continue
            steps = rows(found, consumed, world=range(worlds[files % 8]))[:stop]
            seen += steps
            consumed = remembered(consumed)  # killed after some steps, and started again while files arrive
            add(folder, f"part-{1000 + files}.parquet", 2, first=total)
            total, files = total + 2, files + 1
            found = next_round(open_dataset(folder), "train", consumed)
            seen += rows(found, consumed, start=len(steps), world=range(worlds[files % 8]))
            consumed.finish_round()
        found = next_round(open_dataset(folder), "train", consumed)
        seen += rows(found, consumed) if found.split else []
    assert sorted(number for step in seen for number in step) == list(range(total))


def test_new_files_only_and_in_order(folder: Path) -> None:
    consumed = Consumed()
    found = next_round(open_dataset(folder), "train", consumed)
    assert names(found) == ["part-000.parquet", "part-001.parquet"]
    consumed.finish_round()
    assert next_round(open_dataset(folder), "train", consumed).split is None
    add(folder, "part-003.parquet", 4, 100)
    add(folder, "part-002.parquet", 4, 200)
    consumed = remembered(consumed)
    found = next_round(open_dataset(folder), "train", consumed)
    assert names(found) == ["part-002.parquet", "part-003.parquet"]
    assert (consumed.rounds, found.remarks) == (1, [])


def test_a_file_that_is_still_being_written_waits_and_so_does_what_comes_after_it(folder: Path) -> None:
    consumed = Consumed()
    whole = (folder / "train" / "part-001.parquet").read_bytes()
    (folder / "train" / "part-001.parquet").write_bytes(whole[: len(whole) // 2])
    add(folder, "part-002.parquet", 4, 100)
    found = next_round(open_dataset(folder), "train", consumed)
    assert names(found) == ["part-000.parquet"]
    (remark,) = found.remarks
    assert "part-001.parquet: cannot be read as Parquet" in remark
    assert "2 file(s), are left for the next round" in remark
    consumed.finish_round()
    (folder / "train" / "part-001.parquet").write_bytes(whole)
    assert names(next_round(open_dataset(folder), "train", consumed)) == ["part-001.parquet", "part-002.parquet"]


def test_nothing_but_an_unfinished_file(folder: Path) -> None:
    consumed = Consumed()
    next_round(open_dataset(folder), "train", consumed)
    consumed.finish_round()
    (folder / "train" / "part-002.parquet").write_bytes(b"PAR1")
    found = next_round(open_dataset(folder), "train", consumed)
    assert found.split is None
    assert len(found.remarks) == 1


@pytest.mark.parametrize("finished", [True, False])
def test_a_file_that_was_replaced(folder: Path, finished: bool) -> None:
    consumed = Consumed()
    next_round(open_dataset(folder), "train", consumed)
    if finished:
        consumed.finish_round()
    path = add(folder, "part-001.parquet", 11, 500)
    with pytest.raises(UserError, match=f"{path}: the file has changed since"):
        next_round(open_dataset(folder), "train", remembered(consumed))


def test_a_consumed_file_may_be_removed_or_rewritten_alike(folder: Path) -> None:
    consumed = Consumed()
    next_round(open_dataset(folder), "train", consumed)
    consumed.finish_round()
    (folder / "train" / "part-000.parquet").unlink()
    other = shutil.copy(folder / "train" / "part-001.parquet", folder / "copy")
    os.replace(other, folder / "train" / "part-001.parquet")
    add(folder, "part-009.parquet", 4, 100)
    assert names(next_round(open_dataset(folder), "train", consumed)) == ["part-009.parquet"]


def test_a_file_of_the_round_that_is_gone(folder: Path) -> None:
    consumed = Consumed()
    next_round(open_dataset(folder), "train", consumed)
    path = folder / "train" / "part-001.parquet"
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: "):
        next_round(open_dataset(folder), "train", consumed)


def test_a_name_that_comes_too_late(folder: Path) -> None:
    consumed = Consumed()
    next_round(open_dataset(folder), "train", consumed)
    consumed.finish_round()
    add(folder, "part-000b.parquet", 4, 100)
    with pytest.raises(UserError, match=r"part-000b\.parquet: this file is new, but its name comes before part-001"):
        next_round(open_dataset(folder), "train", consumed)
