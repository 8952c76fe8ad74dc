"""Training from Parquet files to updated weights: this project, stock TorchRec, plain PyTorch, and the machine's limit.

Three jobs: one whose dense part takes most of the time, one whose tables do, and that of `make train`. Every contestant is a
process of its own; they take turns, a few steps each, so that other load on the machine affects all of them, and ratios are
taken within a turn. Before the turns each contestant tries its settings (one or two threads, eager or torch.compile,
baselines also experts in a loop or joined) and keeps the fastest.

- ours: the training that `dlrm-mtl train` runs, Clippy for tables and dense part, rows shuffled.
- compiled: the same with `training.compile: true`.
- TorchRec: DistributedModelParallel, FBGEMM's row-wise AdaGrad, fused AdaGrad for the dense part, a loop by hand.
- PyTorch: nn.EmbeddingBag with sparse gradients, torch.optim.Adagrad.
- limit: the job's matrix products alone, and its rows read and written alone; no training of this model can be faster
  without faster products. Our share of the limit is the limit's time divided by ours.

Tables have 1,000,000 rows where 48 GB of memory are free, else 250,000 (100,000 with --quick): then all contestants fit.

    python -m benchmarks end-to-end
"""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import statistics
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.end_to_end_contestants import Setting, flops, serve
from benchmarks.end_to_end_jobs import Job, columns, jobs, write

TARGETS = {"dense-heavy": {"TorchRec": 1.5, "PyTorch": 1.5}, "table-heavy": {"TorchRec": 2.0, "PyTorch": 4.0}}
"""Our rows per second to those of the baselines, at least."""
LIMIT_TARGET = 0.6
CONTESTANTS = ["ours", "compiled", "TorchRec", "PyTorch", "limit"]
BASELINES = ["TorchRec", "PyTorch"]
WARM_UP = 2


class Spent(NamedTuple):
    """What a step took."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of processor time of all threads; less sensitive to other load on the machine."""


class Worker:
    """A contestant's process."""

    def __init__(self, contestant: str, job: Job, data: str, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(contestant, job, data, setting, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.take(WARM_UP)

    def take(self, steps: int) -> Spent:
        """Take ``steps`` steps; return what one of them took."""
        self.pipe.send(steps)
        wall, processor = self.pipe.recv()
        return Spent(wall / steps, processor / steps)

    def end(self) -> None:
        """End the process."""
        pipe: Connection = self.pipe
        pipe.send(None)
        self.process.join()


def run(quick: bool) -> dict[str, Any]:
    """Measure the jobs; print rows per second and ratios (median, middle half), and return the figures."""
    rows = 100_000 if quick else 1_000_000 if _free_memory() > 48e9 else 250_000
    turns = 3 if quick else 7
    figures: dict[str, Any] = {
        "table_rows": rows,
        "turns": turns,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    print(f"{platform.machine()}, {figures['capability']}, {os.cpu_count()} cores, torch {torch.__version__}")
    results = {}
    for job in jobs(rows, quick):
        with tempfile.TemporaryDirectory() as folder:
            data = job.data
            if not data:
                data = f"{folder}/data"
                write(job, Path(data))
            results[job.name] = _compare(job, data, turns, quick)
    return {**figures, "targets": TARGETS, "limit_target": LIMIT_TARGET, "jobs": results}


def _compare(job: Job, data: str, turns: int, quick: bool) -> dict[str, Any]:
    print(f"\n{job.name}: {job.text}", flush=True)
    settings = {contestant: _choose(contestant, job, data, quick) for contestant in CONTESTANTS}
    workers = {contestant: Worker(contestant, job, data, setting) for contestant, setting in settings.items()}
    spent: dict[str, list[Spent]] = {contestant: [] for contestant in workers}
    try:
        for turn in range(turns):
            shift = turn % len(CONTESTANTS)  # no contestant always follows the same one
            for contestant in CONTESTANTS[shift:] + CONTESTANTS[:shift]:
                spent[contestant].append(workers[contestant].take(job.turn))
    finally:
        for worker in workers.values():
            worker.end()
    found = columns(job, data)
    per_row = flops(job, len(found.sparse) * job.dim + len(found.dense)) / job.batch
    result: dict[str, Any] = {"job": job.text, "flop_per_row": per_row}
    for contestant, times in spent.items():
        rate = job.batch / statistics.median(each.wall for each in times)
        wall, processor = (_ratio(times, spent["ours"], clock) for clock in Spent._fields)
        shown = ""
        if contestant == "limit":
            shown = (
                f"ours has {wall[0]:.0%} of it ({wall[1]:.0%} to {wall[2]:.0%}); by processor time {processor[0]:.0%}"
            )
        elif contestant != "ours":
            shown = f"ours is {wall[0]:.2f} times as fast ({wall[1]:.2f} to {wall[2]:.2f})"
            shown += f"; by processor time {processor[0]:.2f}"
        print(f"  {contestant:10s}{rate:9,.0f} rows/s   {shown:75s} {settings[contestant].text()}", flush=True)
        result[contestant] = {
            "setting": settings[contestant].text(),
            "rows_per_second": rate,
            "ratio_median_low_high": wall,
            "processor_ratio_median_low_high": processor,
            "seconds_per_step": [each.wall for each in times],
            "processor_seconds_per_step": [each.processor for each in times],
        }
    return result


def _choose(contestant: str, job: Job, data: str, quick: bool) -> Setting:
    """The fastest setting of a contestant; with ``quick`` a usual one."""
    most = min(2, os.cpu_count() or 1)
    baseline, compiled = contestant in BASELINES, contestant == "compiled"
    if quick:
        return Setting(most, compiled=compiled, joint=baseline)
    best, fastest = Setting(1, compiled=compiled), math.inf

    def attempt(setting: Setting) -> None:
        nonlocal best, fastest
        worker = Worker(contestant, job, data, setting)
        # The faster of two turns: other load on the machine only adds.
        wall = min(worker.take(job.turn).wall for _ in range(2))
        worker.end()
        if wall < fastest:
            best, fastest = setting, wall

    for threads in sorted({1, most}):
        attempt(Setting(threads, compiled=compiled))
    if baseline:
        attempt(replace(best, joint=True))
        attempt(replace(best, compiled=True))
    return best


def _ratio(spent: list[Spent], ours: list[Spent], clock: str) -> tuple[float, float, float]:
    """Median, first and third quartile of the ratios within turns."""
    ratios = sorted(getattr(theirs, clock) / getattr(own, clock) for theirs, own in zip(spent, ours, strict=True))
    quarter = len(ratios) // 4
    return statistics.median(ratios), ratios[quarter], ratios[-1 - quarter]


def _free_memory() -> float:
    """Bytes that new processes can use."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return float(line.split()[1]) * 1024
    return 0.0
