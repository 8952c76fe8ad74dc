"""Cost of drawing negatives in the reader, compared with reading as many rows from files.

Observed rows of a user, an item with its category, 9 other sparse columns, a list of up to 20 ids, 5 dense columns and a label;
the items' popularity has a heavy tail. Each way to draw gives 4 negatives for every row. Processor time is that of the whole
process, reading threads included, and so are the seconds of the pass that some ways make over the training split beforehand.

    python -m benchmarks negatives
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import Split, open_dataset
from dlrm_mtl.data.negatives.rewrite import Negatives
from dlrm_mtl.data.negatives.statistics import ItemStatistics, read_statistics
from dlrm_mtl.data.reader import BatchLoader

BATCH, EACH = 4096, 4
USERS, ITEMS = 1_000_000, 200_000
AVOID = {"known": "avoid", "user": "user"}
WAYS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "uniform": {"by": "uniform"},
    "popularity": {"by": "popularity"},
    "in_batch": {"by": "in_batch"},
    "popularity, avoid": {"by": "popularity", **AVOID},
    "in_batch, avoid": {"by": "in_batch", **AVOID},
}


def run(quick: bool) -> dict[str, Any]:
    """Interleave the variants; print processor time per row, medians over the turns."""
    torch.set_num_threads(1)
    rows, turns = (1_000_000, 3) if quick else (4_000_000, 5)
    figures: dict[str, Any] = {"rows": rows, "turns": turns, "each": EACH, "ways": {}}
    with tempfile.TemporaryDirectory() as folder:
        split = _write(Path(folder), rows)
        drawn: dict[str, Negatives | None] = {}
        for name, way in WAYS.items():
            figures["ways"][name], drawn[name] = _prepared(split, way)
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        for turn in range(turns + 1):
            for name, negatives in drawn.items():
                spent = _read(split, negatives, turn, rows // 4)
                if turn:  # the first turn fills caches
                    seconds[name].append(spent)
    print(f"{rows:,} rows; microseconds of processor time")
    for name, values in seconds.items():
        more = [value - plain for value, plain in zip(values, seconds["none"], strict=True)]
        figure = figures["ways"][name]
        figure |= {"row": statistics.median(values), "drawn_row": statistics.median(more) / EACH}
        print(
            f"  {name:20s} {figure['row'] * 1e6:6.2f} per row read, {figure['drawn_row'] * 1e6:5.2f} per row drawn; before "
            f"training {figure['pass_seconds'] / rows * 1e6:5.2f} s and {figure['bytes'] / rows:5.1f} MB per million rows"
        )
    return figures


def _prepared(split: Split, way: dict[str, Any] | None) -> tuple[dict[str, float], Negatives | None]:
    if way is None:
        return {"pass_seconds": 0.0, "bytes": 0}, None
    config = DataConfig(path="", negatives={"item": "item", "along": ["category"], "each": EACH, **way})
    begin = time.process_time()
    found = read_statistics(split, config, ["click"])
    figure = {"pass_seconds": time.process_time() - begin, "bytes": _bytes(found)}
    return figure, Negatives(split.spec, config, ["click"], found, seed=1)


def _bytes(found: ItemStatistics) -> int:
    lists = sum(lists.values.nbytes + lists.offsets.nbytes for lists in found.along.values())
    return int(found.items.nbytes + found.counts.nbytes + found.pairs.nbytes + lists)


def _read(split: Split, negatives: Negatives | None, epoch: int, rows: int) -> float:
    """Seconds of processor time per row read."""
    config = DataConfig(path="", batch_size=BATCH, evaluation_batch_size=BATCH)
    steps = rows // BATCH
    begin = time.process_time()
    with BatchLoader(split, config, ["click"], seed=1, negatives=negatives).epoch(epoch) as batches:
        for batch in itertools.islice(batches, steps):
            assert batch.size == BATCH * (1 + EACH * (negatives is not None))
    return (time.process_time() - begin) / (steps * BATCH)


def _write(folder: Path, rows: int) -> Split:
    rng = np.random.default_rng(0)
    item = np.minimum(rng.pareto(0.8, rows) * 50, ITEMS - 2).astype(np.int32) + 1
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 21, rows))]).astype(np.int32)
    history = rng.integers(1, ITEMS, offsets[-1]).astype(np.int32)
    sparse = {"user": USERS, "item": ITEMS, "category": 500, **{f"c{number}": 1000 for number in range(9)}}
    columns: dict[str, Any] = {name: rng.integers(1, size, rows).astype(np.int32) for name, size in sparse.items()}
    columns |= {"item": item, "category": item.astype(np.int64) * 7919 % 500}
    columns["history"] = pa.ListArray.from_arrays(offsets, history)
    columns |= {f"d{number}": rng.normal(size=rows).astype(np.float32) for number in range(5)}
    columns["click"] = np.ones(rows, np.int8)
    (folder / "train").mkdir()
    pq.write_table(pa.table(columns), folder / "train" / "part-0.parquet", row_group_size=65536, compression="zstd")
    features = [{"name": name, "kind": "sparse", "vocabulary_size": size} for name, size in sparse.items()]
    features.append({"name": "history", "kind": "sequence", "vocabulary": "item"})
    features += [{"name": f"d{number}", "kind": "dense"} for number in range(5)]
    splits = {"train": {"folder": "train"}}
    spec = {"name": "observed", "splits": splits, "features": features, "labels": [{"name": "click"}]}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return open_dataset(folder).split("train")
