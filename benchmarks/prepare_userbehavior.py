"""Preparing a log of Taobao UserBehavior's layout: seconds, processor time and peak memory by size.

Every size is a generated log of as many events, with users, items and shares of behaviours in the proportions of the
published one (988,000 users, 4.16 million items, 89.6% views, in 100 million events); the item of rank r has popularity r
** -0.5, so the first has 0.05% of the events. It is prepared by ``dlrm-mtl prepare userbehavior`` in a separate process,
whose peak memory is measured by the system (ru_maxrss).

    python -m benchmarks prepare-userbehavior [--quick]

DLRM_MTL_ROWS sets the sizes (comma separated), DLRM_MTL_MEMORY the value of --memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

FULL_EVENTS, FULL_USERS, FULL_ITEMS, CATEGORIES = 100_150_807, 987_994, 4_162_024, 9_439
SHARES = {"pv": 0.8958, "cart": 0.0552, "fav": 0.0288, "buy": 0.0202}
CHUNK = 1_000_000
MEASURE = """
import resource, runpy, sys
sys.argv = ["dlrm-mtl", *sys.argv[1:]]
try:
    runpy.run_module("dlrm_mtl", run_name="__main__")
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("used", used.ru_maxrss, used.ru_utime + used.ru_stime)
"""


def run(quick: bool) -> dict[str, Any]:
    """Prepare logs of growing size and print time and memory of each."""
    sizes = [int(size) for size in os.environ.get("DLRM_MTL_ROWS", "").split(",") if size]
    sizes = sizes or ([500_000, 1_000_000] if quick else [5_000_000, 10_000_000, 20_000_000])
    memory = os.environ.get("DLRM_MTL_MEMORY", "2GB")
    print(f"--memory {memory}, {os.cpu_count()} cores; seconds on the clock, and of processor time over all threads")
    print(
        f"{'events':>12} {'csv MB':>8} {'seconds':>8} {'cpu s':>8} {'cpu us/event':>12} {'peak MB':>8} {'disk MB':>8}"
    )
    figures = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="prepare-") as place:
            folder = Path(place)
            generate(folder / "UserBehavior.csv", size)
            figures.append({"events": size, **measure(folder, memory)})
        last = figures[-1]
        print(
            f"{size:>12,} {last['csv_mb']:>8,.0f} {last['seconds']:>8.1f} {last['processor_seconds']:>8.1f} "
            f"{last['processor_seconds'] / size * 1e6:>12.2f} {last['peak_mb']:>8,.0f} {last['output_mb']:>8,.0f}",
            flush=True,
        )
    return {"memory": memory, "sizes": figures}


def generate(path: Path, events: int, seed: int = 0) -> None:
    """Write a log of ``events`` rows, ordered by user like the published one."""
    scale = events / FULL_EVENTS
    users, items = max(int(FULL_USERS * scale), 100), max(int(FULL_ITEMS * scale), 400)
    rng = np.random.default_rng(seed)
    category_of = rng.integers(1, CATEGORIES + 1, items)
    names = list(SHARES)
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
    with open(path, "wb") as file:
        for start in range(0, events, CHUNK):
            count = min(CHUNK, events - start)
            item = (rng.random(count) ** 2 * items).astype(np.int64)  # rank: the share up to rank r is sqrt(r / items)
            columns = {
                "user": np.sort(rng.integers(start * users // events, (start + count) * users // events + 1, count))
                + 1,
                "item": item * 7919 % items + 1,
                "category": category_of[item],
                "behaviour": np.array(names)[rng.choice(len(names), count, p=np.array(list(SHARES.values())))],
                "time": rng.integers(1_511_539_200, 1_512_316_800, count),
            }
            pyarrow.csv.write_csv(pa.table(columns), file, options)


def measure(folder: Path, memory: str) -> dict[str, float]:
    """Prepare ``folder/UserBehavior.csv`` in a new process; return time, memory and size of the result."""
    command = [sys.executable, "-c", MEASURE, "prepare", "userbehavior", "--input", folder, "--output", folder / "out"]
    started = time.perf_counter()
    done = subprocess.run([*map(str, command), "--memory", memory], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    kilobytes, processor = done.stdout.split("used")[-1].split()
    written = sum(path.stat().st_size for path in (folder / "out").rglob("*.parquet"))
    return {
        "csv_mb": (folder / "UserBehavior.csv").stat().st_size / 1e6,
        "seconds": seconds,
        "processor_seconds": float(processor),
        "peak_mb": int(kilobytes) * 1024 / 1e6,
        "output_mb": written / 1e6,
    }
