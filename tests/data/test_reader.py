"""Reading real Parquet files in lanes."""

from __future__ import annotations

import gc
import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import DataFile, open_dataset
from dlrm_mtl.data.reader import BatchLoader
from tests.data.reading import LABELS, actual, expected, loader, row_numbers, write

files = st.lists(st.lists(st.sampled_from([0, 1, 1, 2, 5, 17]), max_size=5), min_size=1, max_size=4).filter(
    lambda content: sum(map(sum, content)) > 0
)


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in [
            (one.sparse.values(), other.sparse.values()),
            (one.sparse.lengths(), other.sparse.lengths()),
            (one.dense, other.dense),
            (one.labels, other.labels),
            (one.weights, other.weights),
        ]
    )


@settings(max_examples=40, deadline=None)
@given(
    content=files,
    lanes=st.sampled_from([1, 2, 4, 8]),
    lane_batch=st.integers(1, 7),
    block_rows=st.sampled_from([1, 4, 100]),
    shuffle=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_row_once_and_as_a_plain_reading_gives_it(
    content: list[list[int]], lanes: int, lane_batch: int, block_rows: int, shuffle: bool, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = write(Path(folder) / "set", content, seed)
        reading = loader(
            Path(folder) / "set",
            lanes=lanes,
            batch_size=lanes * lane_batch,
            evaluation_batch_size=lanes,
            block_rows=block_rows,
            shuffle=shuffle,
            seed=seed,
            max_sequence_length=5,
        )
        batches = list(reading.epoch(0))
    assert len(batches) == reading.steps_per_epoch
    assert all(batch.size == lanes * lane_batch for batch in batches)
    numbers = [number for batch in batches for number in row_numbers(batch)]
    assert sorted(number for number in numbers if number is not None) == list(range(rows.num_rows))
    for number, found in zip(numbers, (row for batch in batches for row in actual(batch)), strict=True):
        wanted = expected(rows, number, longest=5)
        assert found == {key: pytest.approx(value, rel=1e-5, abs=1e-6) for key, value in wanted.items()}


@settings(max_examples=15, deadline=None)
@given(content=files, lane_batch=st.integers(1, 5), block_rows=st.sampled_from([3, 100]), epoch=st.integers(0, 2))
def test_the_global_batch_is_the_same_on_any_number_of_processes(
    content: list[list[int]], lane_batch: int, block_rows: int, epoch: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "set", content)
        options: dict[str, Any] = {"lanes": 8, "batch_size": 8 * lane_batch, "block_rows": block_rows, "seed": 4}
        alone = [row for batch in loader(Path(folder) / "set", **options).epoch(epoch) for row in actual(batch)]
        for world_size in (2, 4, 8):
            parts = [
                list(loader(Path(folder) / "set", rank=rank, world_size=world_size, **options).epoch(epoch))
                for rank in range(world_size)
            ]
            assert alone == [row for step in zip(*parts, strict=True) for batch in step for row in actual(batch)]


def test_starting_at_a_step_gives_what_iterating_there_gives(tmp_path: Path) -> None:
    write(tmp_path / "set", [[40, 3, 0, 17], [], [1, 1, 60]])
    reading = loader(tmp_path / "set", block_rows=10, seed=2)
    batches = list(reading.epoch(3))
    for start in range(reading.steps_per_epoch + 1):
        rest = list(reading.epoch(3, start))
        assert len(rest) == len(batches) - start
        assert all(same(one, other) for one, other in zip(rest, batches[start:], strict=True))


def global_batches(folder: Path, world_size: int, position: int, **options: Any) -> Iterator[list[int | None]]:
    """The row numbers of each global batch from step ``position`` of a run on, epoch after epoch."""
    ranks = [loader(folder, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    first, start = divmod(position, ranks[0].steps_per_epoch)
    for epoch in itertools.count(first):
        with ExitStack() as stack:
            parts = [stack.enter_context(rank.epoch(epoch, start if epoch == first else 0)) for rank in ranks]
            for step in zip(*parts, strict=True):
                yield [number for batch in step for number in row_numbers(batch)]


@settings(max_examples=15, deadline=None)
@given(
    content=files,
    lane_batch=st.integers(1, 5),
    block_rows=st.sampled_from([3, 100]),
    attempts=st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 4), st.integers(0, 3)), max_size=4),
)
def test_runs_that_are_killed_and_go_on_elsewhere_see_every_row_once_an_epoch(
    content: list[list[int]], lane_batch: int, block_rows: int, attempts: list[tuple[int, int, int]]
) -> None:
    """Each attempt has its own number of processes, some steps that a checkpoint keeps, and some more that are lost."""
    epochs = 2
    with tempfile.TemporaryDirectory() as name:
        folder, options = Path(name) / "set", {"lanes": 4, "batch_size": 4 * lane_batch, "block_rows": block_rows}
        rows = write(folder, content).num_rows
        per_epoch = loader(folder, **options).steps_per_epoch
        seen: list[list[int | None]] = []
        for world_size, kept, lost in [*attempts, (1, epochs * per_epoch, 0)]:
            kept = min(kept, epochs * per_epoch - len(seen))
            with closing(global_batches(folder, world_size, len(seen), **options)) as steps:
                read = list(itertools.islice(steps, kept + lost))
            seen += read[:kept]
        whole = list(itertools.islice(global_batches(folder, 1, 0, **options), epochs * per_epoch))
    for epoch in range(epochs):
        numbers = [number for step in seen[epoch * per_epoch : (epoch + 1) * per_epoch] for number in step]
        assert sorted(number for number in numbers if number is not None) == list(range(rows))
    assert seen == whole


def test_seeking_reads_only_the_blocks_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set", [[10] * 20])
    reading = loader(tmp_path / "set", block_rows=10, seed=2)
    read: list[object] = []
    inner = DataFile.read_group
    monkeypatch.setattr(DataFile, "read_group", lambda *arguments: (read.append(arguments), inner(*arguments))[1])
    list(reading.epoch(0, reading.steps_per_epoch - 1))
    assert len(read) == 4  # one per lane


def test_epochs_differ_and_seeds_repeat(tmp_path: Path) -> None:
    write(tmp_path / "set", [[100], [100]])

    def order(seed: int, epoch: int, **options: Any) -> list[int | None]:
        return [
            row for batch in loader(tmp_path / "set", seed=seed, **options).epoch(epoch) for row in row_numbers(batch)
        ]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0, shuffle=False, lanes=1) == [*range(200)]


def test_padding_has_no_weight_and_no_ids(tmp_path: Path) -> None:
    write(tmp_path / "set", [[3]])
    (batch,) = loader(tmp_path / "set", lanes=2, batch_size=8, evaluation_batch_size=8).epoch(0)
    padded = [index for index, number in enumerate(row_numbers(batch)) if number is None]
    assert len(padded) == 5
    assert not batch.weights[padded].any()
    assert not batch.dense[padded].any()
    assert not batch.sparse.lengths().view(4, 8)[:, padded].any()


def test_types_and_shapes(tmp_path: Path) -> None:
    write(tmp_path / "set", [[20]])
    batch = next(loader(tmp_path / "set").epoch(0))
    assert batch.sparse.keys() == ["row", "user", "tags", "seen"]
    assert (batch.sparse.values().dtype, batch.sparse.lengths().dtype) == (torch.int64, torch.int32)
    assert (batch.dense.shape, batch.labels.shape, batch.weights.shape) == ((8, 2), (8, 3), (8, 3))
    assert {batch.dense.dtype, batch.labels.dtype, batch.weights.dtype} == {torch.float32}


def test_features_and_labels_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "set", [[20]])
    options: dict[str, Any] = {
        "sparse": ["tags", "row"],
        "sequence": [],
        "dense": ["count"],
        "labels": ["seconds", "click"],
    }
    reading = loader(tmp_path / "set", **options)
    assert reading.selection.columns == ["tags", "row", "count", "seconds", "click"]
    batch = next(reading.epoch(0))
    assert batch.sparse.keys() == ["tags", "row"]
    assert (batch.dense.shape[1], batch.labels.shape[1]) == (1, 2)


def test_no_features_at_all(tmp_path: Path) -> None:
    write(tmp_path / "set", [[20]])
    batch = next(loader(tmp_path / "set", sparse=[], sequence=[], dense=[]).epoch(0))
    assert (batch.sparse.keys(), batch.sparse.stride(), tuple(batch.dense.shape)) == ([], 8, (8, 0))


def test_row_weights_and_dense_limit(tmp_path: Path) -> None:
    rows = write(tmp_path / "set", [[50]])
    for batch in loader(tmp_path / "set", weight="importance", dense_limit=0.5).epoch(0):
        for number, weights in zip(row_numbers(batch), batch.weights.tolist(), strict=True):
            if number is not None:
                importance = rows.column("importance")[number].as_py()
                present = [rows.column(name)[number].is_valid for name in LABELS]
                assert weights == pytest.approx([importance if there else 0.0 for there in present])
        assert batch.dense.abs().max() <= 0.5


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("batch-prefetch", "block-reader"))]


def test_the_thread_ends_with_the_epoch_when_closed_and_when_forgotten(tmp_path: Path) -> None:
    write(tmp_path / "set", [[200]])
    reading = loader(tmp_path / "set", prefetch=1)
    list(reading.epoch(0))
    assert not threads()
    with reading.epoch(0) as batches:
        next(batches)
        assert threads()
    assert not threads()
    assert list(batches) == []
    forgotten = reading.epoch(0)
    next(forgotten)
    del forgotten
    gc.collect()
    assert not threads()


def test_closing_while_the_thread_waits_is_prompt(tmp_path: Path) -> None:
    write(tmp_path / "set", [[400]])
    batches = loader(tmp_path / "set", prefetch=2).epoch(0)
    time.sleep(0.1)  # the queue is full now
    begin = time.perf_counter()
    batches.close()
    batches.close()
    assert time.perf_counter() - begin < 1
    assert not threads()


def test_an_exception_of_the_thread_reaches_the_consumer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set", [[100]])
    reading = loader(tmp_path / "set")

    def fail(*arguments: object) -> Any:
        raise RuntimeError("in the thread")

    monkeypatch.setattr(DataFile, "read_group", fail)
    with pytest.raises(RuntimeError, match="in the thread"):
        list(reading.epoch(0))
    assert not threads()


def test_waiting_is_measured(tmp_path: Path) -> None:
    write(tmp_path / "set", [[100]])
    reading = loader(tmp_path / "set")
    list(reading.epoch(0))
    assert 0 < reading.wait_seconds < 10


def test_a_batch_size_that_is_no_multiple_of_the_lanes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "set", [[100]])
    split = open_dataset(tmp_path / "set").split("train")
    config = DataConfig(path="unused", lanes=4, batch_size=8, evaluation_batch_size=8)
    with pytest.raises(UserError, match=r"batch size 6 is not a multiple of data\.lanes \(4\)"):
        BatchLoader(split, config, LABELS, batch_size=6)
    assert BatchLoader(split, config, LABELS, batch_size=16).local_batch_size == 16
