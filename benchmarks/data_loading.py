"""From Parquet files to batches: the reader, Arrow alone, and usual hand-written code.

Rows of 26 sparse columns, one list of up to 50 ids, 13 dense columns and 2 labels become a KeyedJaggedTensor, dense
features, labels and weights, 8,192 rows a batch. The baseline is Arrow decoding the same columns into discarded tables:
consecutive ``read_row_group`` calls, and two threads that each read row groups. All variants may use two cores, are
interleaved, and read files in the page cache.

- pandas: each worker of a ``torch.utils.data.DataLoader`` reads row groups with pandas and cuts them into batches in Python.
- to_batches: ``pyarrow.dataset`` scans in its threads; batches are collated with numpy. Neither shuffles.

The same rows are in one file of large row groups, in one file of 1,000 small ones, and in 1,000 files of one small one
each.

    python -m benchmarks data-loading
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
import yaml
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import Split, open_dataset
from dlrm_mtl.data.reader import BatchLoader

TARGET = 0.7
BATCH = 8192
SPARSE = {f"s{k}": int(10 ** (2 + k / 5)) for k in range(26)}  # vocabularies of 100 to 10,000,000
DENSE = [f"d{k}" for k in range(13)]
LABELS = ["y0", "y1"]
COLUMNS = [*SPARSE, "history", *DENSE, *LABELS]
HISTORY = 100_000
CORES = 2

Parts = tuple[KeyedJaggedTensor, torch.Tensor, torch.Tensor, torch.Tensor]


def run(quick: bool) -> dict[str, Any]:
    """Interleave the variants; print rows per second, and ratios to Arrow within a turn (median, lowest, highest)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    pa.set_cpu_count(CORES)
    torch.set_num_threads(1)
    files, turns = (100, 3) if quick else (1000, 5)
    rows = files * 4096
    figures: dict[str, Any] = {"rows": rows, "turns": turns, "target": TARGET, "layouts": {}}
    with tempfile.TemporaryDirectory() as folder:
        table = _table(rows)
        layouts = {
            "one file, groups of 65,536": (1, 65536),
            f"one file, {files:,} groups of 4,096": (1, 4096),
            f"{files:,} files of one group": (files, 4096),
        }
        splits = {}
        for name, (count, group) in layouts.items():
            splits[name] = _write(Path(folder) / str(len(splits)), table, count, group)
        del table
        for name, split in splits.items():
            figures["layouts"][name] = _compare(name, split, turns)
    return figures


def _compare(name: str, split: Split, turns: int) -> dict[str, Any]:
    contestants: dict[str, Callable[[], Iterator[int]]] = {
        "Arrow, one read_row_group after the other": lambda: _arrow(split, 1),
        "Arrow, two threads": lambda: _arrow(split, CORES),
        "reader, shuffled": lambda: _reader(split, True),
        "reader, in file order": lambda: _reader(split, False),
        "pandas, 2 workers": lambda: _pandas(split, 2),
        "pandas, in the process": lambda: _pandas(split, 0),
        "to_batches": lambda: _to_batches(split),
    }
    speeds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for turn in range(turns + 1):
        for contestant, start in contestants.items():
            begin = time.perf_counter()
            done = sum(start())
            speed = done / (time.perf_counter() - begin)
            assert done == split.rows, (contestant, done, split.rows)
            if turn:  # the first turn fills caches
                speeds[contestant].append(speed)
    print(f"\n{name}: {split.rows:,} rows")
    result: dict[str, Any] = {}
    yardsticks = list(contestants)[:2]
    for contestant, values in speeds.items():
        ratios = [sorted(a / b for a, b in zip(values, speeds[other], strict=True)) for other in yardsticks]
        shown = "  ".join(f"{statistics.median(r):5.2f} ({r[0]:.2f} to {r[-1]:.2f})" for r in ratios)
        print(f"  {contestant:42s} {statistics.median(values) / 1e3:7,.0f} thousand rows/s   {shown}")
        result[contestant] = {"rows_per_second": values, "to_arrow": ratios[0], "to_arrow_threads": ratios[1]}
    return result


def _arrow(split: Split, threads: int) -> Iterator[int]:
    opened = threading.local()

    def read(job: tuple[Any, int]) -> int:
        file, group = job
        if getattr(opened, "file", None) is not file:
            opened.file, opened.parquet = file, file.open()
        return int(opened.parquet.read_row_group(group, columns=COLUMNS, use_threads=threads == 1).num_rows)

    jobs = [(file, group) for file in split.files for group in range(file.metadata.num_row_groups)]
    if threads == 1:
        yield from map(read, jobs)
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(read, jobs)


def _reader(split: Split, shuffle: bool) -> Iterator[int]:
    config = DataConfig(path="", batch_size=BATCH, lanes=8, shuffle=shuffle)
    loader = BatchLoader(split, config, LABELS, seed=1)
    left = split.rows
    for batch in loader.epoch(0):
        rows = int((batch.weights[:, 0] > 0).sum()) if left < 2 * BATCH else BATCH  # the last batches are padded
        left -= rows
        yield rows


class _Frames(IterableDataset):
    def __init__(self, split: Split) -> None:
        self.jobs = [(file.path, group) for file in split.files for group in range(file.metadata.num_row_groups)]

    def __iter__(self) -> Iterator[Parts]:
        worker = get_worker_info()
        jobs = self.jobs if worker is None else self.jobs[worker.id :: worker.num_workers]
        path, opened = "", None
        for wanted, group in jobs:
            if wanted != path:
                path, opened = wanted, pq.ParquetFile(wanted)
            assert opened is not None
            frame = opened.read_row_group(group, columns=COLUMNS).to_pandas()
            for start in range(0, len(frame), BATCH):
                part = frame.iloc[start : start + BATCH]
                lists = part["history"].to_list()
                ids = [part[name].to_numpy() for name in SPARSE] + lists
                lengths = np.ones((len(SPARSE) + 1, len(part)), np.int32)
                lengths[-1] = [len(one) for one in lists]
                yield _parts(np.concatenate(ids), lengths, part[DENSE].to_numpy(), part[LABELS].to_numpy())


def _pandas(split: Split, workers: int) -> Iterator[int]:
    for _, dense, _, _ in DataLoader(
        _Frames(split), batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
    ):
        yield len(dense)


def _to_batches(split: Split) -> Iterator[int]:
    data = ds.dataset([file.path for file in split.files], format="parquet")
    for batch in data.to_batches(columns=COLUMNS, batch_size=BATCH):
        lists = batch.column("history")
        lengths = np.ones((len(SPARSE) + 1, batch.num_rows), np.int32)
        lengths[-1] = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        ids = [batch.column(name).to_numpy() for name in SPARSE] + [lists.flatten().to_numpy()]
        dense, labels = (
            np.stack([batch.column(name).to_numpy() for name in names], axis=1) for names in (DENSE, LABELS)
        )
        _parts(np.concatenate(ids), lengths, dense, labels)
        yield batch.num_rows


def _parts(ids: np.ndarray, lengths: np.ndarray, dense: np.ndarray, labels: np.ndarray) -> Parts:
    sparse = KeyedJaggedTensor(
        keys=[*SPARSE, "history"],
        values=torch.from_numpy(ids.astype(np.int64)),
        lengths=torch.from_numpy(lengths.reshape(-1)),
        stride=lengths.shape[1],
    )
    scaled = torch.from_numpy((dense - np.float32(1.6)) / np.float32(2.1))
    return sparse, scaled, torch.from_numpy(labels.astype(np.float32)), torch.ones(labels.shape)


def _table(rows: int) -> pa.Table:
    """Ids and list entries with a log-uniform frequency, similar to popularity in logs."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {name: (size ** rng.random(rows)).astype(np.int32) - 1 for name, size in SPARSE.items()}
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 51, rows))]).astype(np.int32)
    values = (HISTORY ** rng.random(int(offsets[-1]))).astype(np.int32) - 1
    columns["history"] = pa.ListArray.from_arrays(offsets, values)
    columns.update({name: rng.lognormal(size=rows).astype(np.float32) for name in DENSE})
    columns.update({name: (rng.random(rows) < 0.1).astype(np.int8) for name in LABELS})
    return pa.table(columns)


def _write(folder: Path, table: pa.Table, files: int, group: int) -> Split:
    (folder / "train").mkdir(parents=True)
    each = table.num_rows // files
    for number in range(files):
        path = folder / "train" / f"part-{number:04d}.parquet"
        pq.write_table(table.slice(number * each, each), path, row_group_size=group, compression="zstd")
    scale = {"mean": 1.6, "std": 2.1, "min": 0.0, "max": 1000.0}
    spec = {
        "name": "benchmark",
        "splits": {"train": {"folder": "train"}},
        "features": [
            *({"name": name, "kind": "sparse", "vocabulary_size": size} for name, size in SPARSE.items()),
            {"name": "history", "kind": "sequence", "vocabulary_size": HISTORY},
            *({"name": name, "kind": "dense", "statistics": scale} for name in DENSE),
        ],
        "labels": [{"name": name} for name in LABELS],
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return open_dataset(folder).split("train")
