"""Unbounded ids: share of a training step for mapping them to rows, and share of ids that lose their row as a table fills.

Steps are those of configs/kuairand_unbounded.yaml with larger batches, on one thread per process; the share is that of the
same step. Several processes: ``torchrun --nproc-per-node 2 -m benchmarks unbounded-ids``.

    python -m benchmarks unbounded-ids
"""

from __future__ import annotations

import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.processes import Process, process_group
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.embeddings.unbounded.row_map import RowSlots
from dlrm_mtl.run.train import make_loader
from dlrm_mtl.training.build import build_model, build_optimizers, build_step

CONFIG = Path(__file__).parents[1] / "configs" / "kuairand_unbounded.yaml"
BATCH = 2048
WARM = 5
FILLS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


def run(quick: bool) -> dict[str, Any]:
    """Print both parts."""
    torch.set_num_threads(1)
    with process_group() as process:
        steps = _steps(process, 20 if quick else 60)
        if not process.is_main:
            return {}
    share, milliseconds = statistics.median(steps["share"]), statistics.median(steps["milliseconds"])
    print(
        f"{process.world_size} process(es), {BATCH:,} rows, {statistics.median(steps['ids']):,.0f} ids on the first: "
        f"{milliseconds:.1f} ms, {share:.1%} of a training step"
    )
    sizes = (10_001,) if quick else (10_001, 1_000_001)
    return {"processes": process.world_size, **steps, "evicted": {rows: _fill(rows) for rows in sizes}}


def _steps(process: Process, count: int) -> dict[str, list[float]]:
    """By step: the share of the time, the time in ms, and the number of ids in this process's part of the batch."""
    config = load_config(
        CONFIG, [f"data.batch_size={BATCH}", f"data.path={CONFIG.parents[1] / 'datasets/kuairand_pure'}"]
    )
    dataset = open_dataset(config.data.path)
    model = build_model(config, dataset.spec, process)
    step = build_step(config, process, model, build_optimizers(config, model, count))
    loader = make_loader(config, dataset, "train", process)
    taken: dict[str, list[float]] = {"share": [], "milliseconds": [], "ids": []}
    spent = 0.0

    def timed(sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        nonlocal spent
        start = time.perf_counter()
        rows = model.ids(sparse)
        spent = time.perf_counter() - start
        return rows

    model.ranker.lookup.unbounded = timed
    model.module.train()
    with loader.epoch(0) as batches:
        for number, batch in enumerate(islice(batches, count)):
            start = time.perf_counter()
            step([batch], number, 0)
            if number >= WARM:
                taken["share"].append(spent / (time.perf_counter() - start))
                taken["milliseconds"].append(spent * 1e3)
                taken["ids"].append(float(len(batch.sparse.values())))
    return taken


def _fill(rows: int) -> dict[float, float]:
    """Share of new ids that lose their row to another, by the number of ids as a share of the rows."""
    evicted = {}
    for share in FILLS:
        slots = RowSlots(rows, "lru", 0, 1, torch.device("cpu"))
        ids = torch.randperm(int((rows - 1) * share), generator=torch.Generator().manual_seed(0)) + 1
        lost = 0
        for step, part in enumerate(ids.split(4096), start=1):
            lost += int(slots.admit(part.sort().values, step)[1].evicted.sum())
            slots.keep()
        evicted[share] = lost / len(ids)
    shares = ", ".join(f"{share:.0%}: {lost:.2%}" for share, lost in evicted.items())
    print(f"{rows:,} rows; ids that lose their row, by ids / rows: {shares}")
    return evicted
