"""Start, checkpoint and resume of a job with large tables, beside what memory and disk can do.

26 tables of 1,000,000 rows (150,000 with ``--quick``) of 64 columns, row-wise Clippy, one process, ``torch.get_num_threads()``
threads.

- memory: writing as many bytes as the weights to new memory in pages of 4 KiB, and again once the system has provided them.
- initial weights: into memory that is there, by the kernel, by PyTorch on as many threads, and by PyTorch block after block in
  one thread, which is how they used to be drawn; all give the same bits.
- start: data set, plan, sharding and initial weights, optimizers, first step.
- save and load: beside writing and reading as many bytes in one file, with fsync and without the page cache.

    python -m benchmarks startup --quick
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.jobs import Job, Shape, configuration, write_data
from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.embeddings.kernels import cpu, initial_rows
from dlrm_mtl.embeddings.kernels.dispatch import VARIABLE
from dlrm_mtl.embeddings.tables import initialise
from dlrm_mtl.storage.run_store import LocalStore

SHAPE = Shape(tables=26, rows=1_000_000, dim=64, batch=2048)
PIECE = 16 << 20
GB = 1e9


def run(quick: bool) -> dict[str, Any]:
    """Measure each stage once, and print it."""
    shape = Shape(tables=26, rows=150_000, dim=64, batch=2048) if quick else SHAPE
    size = 4 * shape.weights
    print(
        f"{shape.tables} tables of {shape.rows:,} x {shape.dim}: {shape.weights / 1e9:.2f} billion weights, "
        f"{size / GB:.2f} GB; {torch.get_num_threads()} thread(s), {cpu.isa()}, {os.cpu_count()} cores"
    )
    figures: dict[str, Any] = {"weights": shape.weights, "threads": torch.get_num_threads(), "instructions": cpu.isa()}

    def note(name: str, action: Callable[[], object], amount: int = size) -> None:
        wall, busy = time.perf_counter(), time.process_time()
        action()
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        figures[name] = {"seconds": wall, "processor": busy, "bytes": amount}
        print(f"  {name:44s} {wall:8.2f} s  {busy:8.2f} s of the processor  {amount / wall / GB:6.2f} GB/s", flush=True)

    memory = [torch.frombuffer(mmap.mmap(-1, size), dtype=torch.float32)]
    note("memory, new", lambda: memory[0].fill_(1.0))
    note("memory, again", lambda: memory[0].fill_(2.0))
    memory.clear()
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident memory from now on
    with tempfile.TemporaryDirectory() as folder, process_group() as process:
        write_data(Path(folder, "data"), shape, 4)
        before = _peak()
        job = Job(configuration(Path(folder, "data"), shape), process)
        note("data set", job.open)
        note("model: plan, sharding, initial weights", job.build)
        note("optimizers", job.optimize)
        note("first step", lambda: next(job.steps()))
        checkpoints, state = Checkpoints(LocalStore(Path(folder, "run")), keep=1), RunState(step=1)
        figures["resident"] = {"before": before, "first step": _peak()}
        note("save", lambda: checkpoints.save(job.tensors, state))
        files = list(Path(folder, "run").rglob("*.safetensors"))
        written = sum(file.stat().st_size for file in files)
        _drop(files)
        note("load", lambda: checkpoints.load("latest", job.tensors), written)
        figures["resident"]["load"] = _peak()
        shown = ", ".join(f"{name} {value / GB:.2f} GB" for name, value in figures["resident"].items())
        print(f"  resident memory, at most: {shown}", flush=True)
        for file in files:
            file.unlink()
        raw = Path(folder, "raw")
        buffer = np.ones(PIECE, np.uint8).data
        note("raw write of one file, fsync", lambda: _write(raw, buffer, written), written)
        _drop([raw])
        note("raw read", lambda: _read(raw, buffer), written)
        raw.unlink()
        stds, module, threads = job.model.table_set.stds, job.model.module, torch.get_num_threads()
        note("initial weights", lambda: initialise(module, stds, 1))
        with _without_kernel():
            note("initial weights by PyTorch, same threads", lambda: initialise(module, stds, 1))
            torch.set_num_threads(1)
            note("initial weights by PyTorch, one thread", lambda: initialise(module, stds, 1))
            torch.set_num_threads(threads)
    figures["form"] = initial_rows.native_form()
    return figures


@contextmanager
def _without_kernel() -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _write(path: Path, buffer: memoryview, size: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for start in range(0, size, PIECE):
            file.write(buffer[: min(PIECE, size - start)])
        os.fsync(file.fileno())


def _read(path: Path, buffer: memoryview) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _drop(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _peak() -> int:
    """Largest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
