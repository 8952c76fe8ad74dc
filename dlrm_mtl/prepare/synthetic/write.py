"""Synthetic data: writing Parquet files, several processes at a time."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.synthetic.truth import Truth, sigmoid
from dlrm_mtl.prepare.synthetic.world import SyntheticRows, World

ROW_GROUP_ROWS = 65536

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class OutputFile:
    """One file to write."""

    path: Path
    stream: int
    """Number of the split: row group ``g`` of a split is drawn from (stream, g)."""
    first_group: int
    rows: int


@dataclass(frozen=True)
class Sums:
    """Sums over the rows of one file, for the statistics in dataset.yaml."""

    rows: int
    positives: list[int]
    dense_sum: list[float]
    dense_square: list[float]
    dense_min: list[float]
    dense_max: list[float]


def names(world: World) -> tuple[list[str], list[str], list[str]]:
    """Names of sparse features, dense features and labels."""
    return (
        [f"sparse_{table}" for table in range(len(world.vocabularies))],
        [f"dense_{number}" for number in range(world.dense)],
        [f"task_{task}" for task in range(world.tasks)],
    )


def make_table(world: World, rows: SyntheticRows, logits: np.ndarray[Any, np.dtype[np.float64]]) -> pa.Table:
    """Features, labels and the true logits (``logit_TASK``) as Arrow columns."""
    sparse, dense, tasks = names(world)
    columns: dict[str, pa.Array] = {}
    for table, name in enumerate(sparse):
        small = world.vocabularies[table] <= np.iinfo(np.int32).max
        ids = pa.array(rows.ids[table].astype(np.int32) if small else rows.ids[table])
        lengths = rows.lengths[table]
        if lengths is not None:
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            ids = pa.ListArray.from_arrays(pa.array(offsets), ids)
        columns[name] = ids
    for number, name in enumerate(dense):
        columns[name] = pa.array(rows.dense[:, number])
    labels = rows.uniform < sigmoid(logits)
    for task, name in enumerate(tasks):
        columns[name] = pa.array(labels[:, task].astype(np.int8))
    for task, name in enumerate(tasks):
        columns[f"logit_{name}"] = pa.array(logits[:, task].astype(np.float32))
    return pa.table(columns)


def write_part(world: World, truth: Truth, part: OutputFile) -> Sums:
    """Write one file; one row group is in memory at a time."""
    _, dense, tasks = names(world)
    positives, collected = np.zeros(len(tasks), dtype=np.int64), []
    writer: pq.ParquetWriter | None = None
    try:
        for group in range(-(-part.rows // ROW_GROUP_ROWS)):
            count = min(ROW_GROUP_ROWS, part.rows - group * ROW_GROUP_ROWS)
            rows = world.draw(part.stream, part.first_group + group, count)
            table = make_table(world, rows, truth.logits(rows.parts))
            if writer is None:
                # A dictionary is useless for numbers that hardly repeat.
                repeating = [name for name in table.column_names if not name.startswith(("dense_", "logit_"))]
                writer = pq.ParquetWriter(
                    part.path, table.schema, compression="zstd", compression_level=1, use_dictionary=repeating
                )
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            positives += [int(np.asarray(table.column(name)).sum()) for name in tasks]
            values = rows.dense.astype(np.float64)
            collected.append(
                [values.sum(axis=0), np.square(values).sum(axis=0), values.min(axis=0), values.max(axis=0)]
            )
    finally:
        if writer is not None:
            writer.close()
    moments = np.array(collected).reshape(-1, 4, len(dense))
    total, square = moments[:, 0].sum(axis=0), moments[:, 1].sum(axis=0)
    low, high = moments[:, 2].min(axis=0), moments[:, 3].max(axis=0)
    return Sums(part.rows, positives.tolist(), total.tolist(), square.tolist(), low.tolist(), high.tolist())


def in_processes(
    function: Callable[..., Result], shared: Sequence[Any], items: Sequence[Item], processes: int
) -> Iterator[tuple[int, Result]]:
    """Call ``function(*shared, item)`` for every item; yield its position and result, in the order of completion."""
    workers = min(processes, len(items))
    if workers <= 1:
        for position, item in enumerate(items):
            yield position, function(*shared, item)
        return
    # Spawned, not forked: the caller may have threads (of DuckDB or torch). The first process handles Ctrl-C.
    context = multiprocessing.get_context("spawn")
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=signal.signal, initargs=ignore) as pool:
        futures = {pool.submit(function, *shared, item): position for position, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                "prepare synthetic: a process was killed, most likely for lack of memory; lower --processes."
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
