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

Tables have 1,000,000 rows where 56 GB of memory are free, else 250,000 (100,000 with --quick): then all contestants fit.
About a quarter of an hour on two quiet cores. An interrupted run shows, and keeps in --json, the turns that are complete.

    python -m benchmarks end-to-end
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
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
SEARCH = ["PyTorch", "TorchRec", "ours", "compiled", "limit"]
"""Order of the search for settings: contestants that need most memory for two candidates first."""
TURNS, QUICK_TURNS = 9, 3
WARM_UP = 2


class Spent(NamedTuple):
    """What a step took."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of processor time of all threads; less sensitive to other load on the machine."""


class Worker:
    """A contestant's process with a setting, ready to take steps."""

    def __init__(self, contestant: str, job: Job, data: str, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self.setting = setting
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(contestant, job, data, setting, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.take(WARM_UP)

    def take(self, steps: int) -> Spent:
        """Take ``steps`` steps; return what one of them took."""
        self.pipe.send((steps, self.setting.threads))
        wall, processor = self.pipe.recv()
        return Spent(wall / steps, processor / steps)

    def end(self) -> None:
        """End the process."""
        pipe: Connection = self.pipe
        with contextlib.suppress(OSError):  # it has ended before
            pipe.send(None)
        self.process.join()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's own options."""
    names = [job.name for job in jobs(1, quick=True)]
    parser.add_argument("--job", action="append", choices=names, help="only this job; may be repeated")


def run(
    quick: bool, job: list[str] | None = None, keep: Callable[[dict[str, Any]], None] = lambda figures: None
) -> dict[str, Any]:
    """Measure the jobs; print rows per second and ratios (median, middle half), and return the figures.

    Args:
        quick: True for small tables and usual settings.
        job: names of the jobs; None for all.
        keep: called with the figures so far, after each turn of the contestants.
    """
    rows = 100_000 if quick else 1_000_000 if _free_memory() > 56e9 else 250_000
    results: dict[str, Any] = {}
    figures: dict[str, Any] = {
        "table_rows": rows,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "targets": TARGETS,
        "limit_target": LIMIT_TARGET,
        "jobs": results,
    }
    print(f"{platform.machine()}, {figures['capability']}, {os.cpu_count()} cores, torch {torch.__version__}")
    for each in jobs(rows, quick):
        if job is not None and each.name not in job:
            continue
        with tempfile.TemporaryDirectory() as folder:
            data = each.data
            if not data:
                data = f"{folder}/data"
                write(each, Path(data))
            print(f"\n{each.name}: {each.text}", flush=True)
            try:
                for found in _turns(each, data, quick):
                    results[each.name] = found
                    keep(figures)
            finally:
                if each.name in results:
                    _show(results[each.name])
    return figures


def _turns(job: Job, data: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Figures of a job, after each turn of the contestants: those of all turns until then."""
    found = columns(job, data)
    per_row = flops(job, len(found.sparse) * job.dim + len(found.dense)) / job.batch
    workers: dict[str, Worker] = {}
    try:
        for contestant in SEARCH:
            workers[contestant] = _fastest(contestant, job, data, quick, workers)
        spent: dict[str, list[Spent]] = {contestant: [] for contestant in CONTESTANTS}
        for turn in range(QUICK_TURNS if quick else TURNS):
            shift = turn % len(CONTESTANTS)  # no contestant always follows the same one
            for contestant in CONTESTANTS[shift:] + CONTESTANTS[:shift]:
                spent[contestant].append(workers[contestant].take(job.turn))
            result: dict[str, Any] = {"job": job.text, "flop_per_row": per_row, "turns": turn + 1}
            for contestant, times in spent.items():
                result[contestant] = {
                    "setting": workers[contestant].setting.text(),
                    "rows_per_second": job.batch / statistics.median(each.wall for each in times),
                    "ratio_median_low_high": _ratio(times, spent["ours"], "wall"),
                    "processor_ratio_median_low_high": _ratio(times, spent["ours"], "processor"),
                    "seconds_per_step": [each.wall for each in times],
                    "processor_seconds_per_step": [each.processor for each in times],
                }
            yield result
    finally:
        for worker in workers.values():
            worker.end()


def _show(result: dict[str, Any]) -> None:
    print(f"  medians of {result['turns']} turns, middle half in brackets")
    for contestant in CONTESTANTS:
        figures = result[contestant]
        wall, processor = figures["ratio_median_low_high"], figures["processor_ratio_median_low_high"]
        shown = ""
        if contestant == "limit":
            shown = (
                f"ours has {wall[0]:.0%} of it ({wall[1]:.0%} to {wall[2]:.0%}); by processor time {processor[0]:.0%}"
            )
        elif contestant != "ours":
            shown = f"ours is {wall[0]:.2f} times as fast ({wall[1]:.2f} to {wall[2]:.2f})"
            shown += f"; by processor time {processor[0]:.2f}"
        print(
            f"  {contestant:10s}{figures['rows_per_second']:9,.0f} rows/s   {shown:75s} {figures['setting']}",
            flush=True,
        )


def _fastest(contestant: str, job: Job, data: str, quick: bool, others: Mapping[str, Worker]) -> Worker:
    """A contestant with its fastest setting; with ``quick`` a usual one.

    One process tries both numbers of threads. Compiled code keeps the number that it was compiled with.
    """
    most = min(2, os.cpu_count() or 1)
    baseline = contestant in BASELINES
    if quick:
        return Worker(contestant, job, data, Setting(most, compiled=contestant == "compiled", joint=baseline))
    if contestant == "compiled":
        return Worker(contestant, job, data, Setting(others["ours"].setting.threads, compiled=True))
    best = Worker(contestant, job, data, Setting(most))
    # The faster of two turns: other load on the machine only adds.
    fastest = min(best.take(job.turn).wall for _ in range(2))
    if most > 1:
        best.setting = replace(best.setting, threads=1)
        alone = min(best.take(job.turn).wall for _ in range(2))
        if alone < fastest:
            fastest = alone
        else:
            best.setting = replace(best.setting, threads=most)
    for change in ({"joint": True}, {"compiled": True}) if baseline else ():
        other = Worker(contestant, job, data, replace(best.setting, **change))
        wall = min(other.take(job.turn).wall for _ in range(2))
        slower = other if wall >= fastest else best
        if wall < fastest:
            best, fastest = other, wall
        slower.end()
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
