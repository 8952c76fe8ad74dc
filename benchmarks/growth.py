"""Growth of a job's costs with its size: rows, tables, ids of a bag, batch and tasks, one at a time.

- start: seconds of the processor until the first step: data set, plan, sharding, initial weights, optimizers.
- step: seconds of the processor in the thread that trains, for a step after the first ones; median. The processor's time hardly
  depends on what else runs on the machine.
- memory: resident bytes after the steps, over those before the start.

For each, the exponent: the slope of its logarithm over that of the size, by least squares over the larger half of the sizes.
1 is proportional, and 0 a constant.

    python -m benchmarks growth --quick --json growth.json --svg growth.svg
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.jobs import Job, Shape, configuration, write_data
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.embeddings.kernels import cpu

BASE = Shape()
CURVES: dict[str, list[int]] = {
    "rows": [10_000, 100_000, 1_000_000, 10_000_000],
    "tables": [1, 10, 100, 300, 1000],
    "ids": [1, 4, 16, 64],
    "batch": [256, 1024, 4096, 16384],
    "tasks": [1, 4, 16, 64],
}
QUICK: dict[str, list[int]] = {
    "rows": [10_000, 100_000, 1_000_000],
    "tables": [1, 10, 100, 1000],
    "ids": [1, 8, 64],
    "batch": [256, 2048, 16384],
    "tasks": [1, 8, 64],
}
OTHERS = {"rows": {"tables": 1, "dim": 64}, "tables": {"rows": 1000}, "tasks": {"tables": 2}}
"""Shape of the job whose size of that name changes, where it is not :data:`BASE`."""
SIZES = {
    "rows": "rows of a table",
    "tables": "tables",
    "ids": "ids of a bag",
    "batch": "rows of a batch",
    "tasks": "tasks",
}
COSTS = {"start": "start, CPU s", "step": "step, CPU s", "memory": "memory, MiB"}


def run(quick: bool) -> dict[str, Any]:
    """Measure each curve, and print its points and exponents."""
    torch.set_num_threads(1)
    steps = 4 if quick else 9
    print(f"one thread, {cpu.isa()} kernels; exponents over the larger half of the sizes")
    curves: dict[str, Any] = {}
    measure(replace(BASE, rows=1000, tables=2), 1)  # imports and caches
    for name, sizes in (QUICK if quick else CURVES).items():
        points = []
        for size in sizes:
            point = measure(replace(BASE, **{**OTHERS.get(name, {}), name: size}), steps)
            points.append({"size": size, **point})
            shown = f"{point['start']:8.3f} s {1000 * point['step']:10.2f} ms {point['memory']:9.1f} MiB"
            print(f"  {SIZES[name]:16s} {size:>11,}  start {shown}", flush=True)
        found = {cost: exponent(sizes, [point[cost] for point in points]) for cost in COSTS}
        print("  " + ", ".join(f"{cost} ~ size^{value:.2f}" for cost, value in found.items()), flush=True)
        curves[name] = {"base": asdict(replace(BASE, **OTHERS.get(name, {}))), "points": points, "exponents": found}
    return {"threads": 1, "instructions": cpu.isa(), "curves": curves}


def measure(shape: Shape, steps: int) -> dict[str, float]:
    """Costs of a job, in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(shape, steps, sender))
    child.start()
    sender.close()
    try:
        point: dict[str, float] = receiver.recv()
    finally:
        child.join()
    return point


def _measure(shape: Shape, steps: int, sender: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, process_group() as process:
        write_data(Path(folder, "data"), shape, steps + 2)
        config = configuration(Path(folder, "data"), shape)
        gc.collect()
        before, begin = _resident(), time.process_time()
        job = Job(config, process)
        job.open()
        job.build()
        job.optimize()
        start = time.process_time() - begin
        times = list(islice(job.steps(), steps + 2))[2:]
        sender.send({"start": start, "step": statistics.median(times), "memory": (_resident() - before) / 2**20})


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Slope of log cost over log size, over the larger half of the sizes."""
    half = len(sizes) // 2
    x, y = (np.log(np.maximum(values[half:] if half > 1 else values[-2:], 1e-9)) for values in (sizes, costs))
    return float(np.polyfit(x, y, 1)[0])


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw all curves: a row for each size, a column for each cost."""
    curves = figures["curves"]
    figure, axes = plt.subplots(
        len(COSTS), len(curves), figsize=(2.7 * len(curves), 2.3 * len(COSTS)), squeeze=False, layout="constrained"
    )
    for column, (name, curve) in enumerate(curves.items()):
        sizes = [point["size"] for point in curve["points"]]
        for row, (cost, label) in enumerate(COSTS.items()):
            plot, costs = axes[row][column], [max(point[cost], 1e-9) for point in curve["points"]]
            slope = curve["exponents"][cost]
            plot.loglog(sizes, costs, "o-", color="#0072b2", markersize=4)
            ends = [sizes[0], sizes[-1]]
            plot.loglog(ends, [costs[-1] * end / sizes[-1] for end in ends], ":", color="#8c959f", linewidth=1)
            plot.set_ylim(min(costs) / 2, max(costs) * 2)
            plot.set_title(f"size$^{{{slope:.2f}}}$", fontsize=9)
            plot.set_ylabel(label if column == 0 else "")
            plot.set_xlabel(SIZES[name] if row == len(COSTS) - 1 else "")
            plot.spines[["top", "right"]].set_visible(False)
            plot.grid(color="#e6eaef", linewidth=0.7)
    figure.suptitle("Costs of a job against its size; dotted: proportional to the size", fontsize=10)
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dlrm_mtl"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
