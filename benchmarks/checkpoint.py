"""Saving and loading a checkpoint beside raw writes and reads of as many bytes, and how long training waits for a save.

Tables, their optimizer state and a dense part, float32, are saved by one process as a run saves them (checksums, index, one
rename, pointers), and loaded and checked. The yardstick writes the same number of bytes from one buffer to one file, with one
fsync, or reads them into a buffer that exists. Contestants take turns; files that are read have been dropped from the page
cache, as on a machine that resumes a run, and once more come from the page cache.

- share: time of the yardstick over that of the contestant, within a turn; median, and interquartile range in brackets.
- wait: time for which training would wait for a save in the background, as a share of the time until the checkpoint is there.
- memory: growth of the resident memory of the process, at most, while it saves or loads.

    python -m benchmarks checkpoint
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.storage.run_store import LocalStore

TARGET = 0.6
STALL = 0.05
DIM = 64
PIECE = 16 << 20
MIB = 1 << 20


class Model:
    """Tensors as a run has them: four tables with an accumulator per row, and a dense part with two moments.

    Args:
        size: bytes of all, about.
    """

    def __init__(self, size: int) -> None:
        rows = size // 4 // (4 * (DIM + 1))
        self.tree: dict[str, Any] = {
            "tables": {f"t{k}": torch.randn(rows, DIM) for k in range(4)},
            "table_state": {f"t{k}": {"accumulator": torch.rand(rows)} for k in range(4)},
            "dense": {f"layer_{k}": torch.randn(256, 256) for k in range(8)},
            "dense_state": {f"layer_{k}": {m: torch.randn(256, 256) for m in ("m", "v")} for k in range(8)},
        }

    def prepare_load(self) -> None:
        """Nothing to do: all tensors exist."""

    def tensors(self) -> dict[str, Any]:
        """The tensors."""
        return self.tree

    def loaded(self, state: RunState) -> None:
        """Nothing to do."""


def run(quick: bool) -> dict[str, Any]:
    """Take turns and print seconds, shares, stall and memory."""
    size, turns = (128 * MIB, 5) if quick else (1024 * MIB, 7)
    model = Model(size)
    with tempfile.TemporaryDirectory() as folder, process_group():
        return _compare(model, Path(folder), size, turns)


def _compare(model: Model, folder: Path, size: int, turns: int) -> dict[str, Any]:
    raw, buffer = folder / "raw", torch.rand(size // 4).view(torch.uint8).numpy().data
    checkpoints = Checkpoints(LocalStore(folder / "run"), keep=1)
    numbers = iter(range(1, 10_000))
    stalls: list[tuple[float, float]] = []

    def wait_for_background() -> None:
        stalls.append(_background(checkpoints, model, next(numbers)))

    def files() -> list[Path]:
        return [raw, *(folder / "run").rglob("*.safetensors")]

    contestants: dict[str, Callable[[], object]] = {
        "raw write": lambda: _write(raw, buffer),
        "save": lambda: checkpoints.save(model, RunState(step=next(numbers))),
        "save in the background": wait_for_background,
        "raw read": lambda: _read(raw, buffer),
        "load": lambda: checkpoints.load("latest", model),
        "raw read from page cache": lambda: _read(raw, buffer),
        "load from page cache": lambda: checkpoints.load("latest", model),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    memory: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, action in contestants.items():
            if name in ("raw read", "load"):
                _drop(files())
            with _memory() as grown:
                begin = time.perf_counter()
                action()
                took = time.perf_counter() - begin
            memory[name].append(grown[0])
            if turn:  # the first turn makes the memory for copies, and fills caches
                seconds[name].append(took)
    yardstick = {
        "save": "raw write",
        "save in the background": "raw write",
        "load": "raw read",
        "load from page cache": "raw read from page cache",
    }
    figures: dict[str, Any] = {"bytes": size, "turns": turns, "target": TARGET, "contestants": {}}
    print(f"{size / MIB:,.0f} MiB in {folder}, {os.cpu_count()} cores")
    for name, times in seconds.items():
        shown, shares = "", []
        if name in yardstick:
            shares = [one / other for one, other in zip(seconds[yardstick[name]], times, strict=True)]
            shown = f"share {_spread(shares)}"
        print(f"  {name:26s} {statistics.median(times):6.2f} s  {max(memory[name]) / MIB:6,.0f} MiB more  {shown}")
        figures["contestants"][name] = {"seconds": times, "memory": memory[name], "shares": shares}
    copied, polled = ([stall[k] for stall in stalls[1:]] for k in range(2))
    figures["stall"] = {"copy": copied, "polls": polled}
    print(
        f"  of a save in the background, training waits {_spread(copied, 3)} for the copies; target: at most {STALL:.0%}"
    )
    print(f"  and {_spread(polled, 3)} for the agreements after steps of 50 ms")
    print(f"  target of the shares: at least {TARGET:.0%}")
    shutil.rmtree(folder / "run")
    return figures


def _spread(values: list[float], digits: int = 2) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _background(checkpoints: Checkpoints, model: Model, step: int) -> tuple[float, float]:
    """Save while this thread does something else; the shares of the time in which it waits, for copies and agreements."""
    begin = time.perf_counter()
    checkpoints.save(model, RunState(step=step), background=True)
    copied, polled, done = time.perf_counter() - begin, 0.0, False
    while not done:
        time.sleep(0.05)  # a step, on a device
        start = time.perf_counter()
        done = checkpoints.poll() is not None
        polled += time.perf_counter() - start
    took = time.perf_counter() - begin
    return copied / took, polled / took


def _write(path: Path, buffer: memoryview) -> None:
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(buffer), PIECE):
            file.write(buffer[start : start + PIECE])
        os.fsync(file.fileno())


def _read(path: Path, buffer: memoryview) -> None:
    with open(path, "rb", buffering=0) as file:
        for start in range(0, len(buffer), PIECE):
            file.readinto(buffer[start : start + PIECE])


def _drop(files: list[Path]) -> None:
    """Drop files from the page cache, where the system can do that."""
    for path in files:
        with open(path, "rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _memory() -> Iterator[list[float]]:
    """A list whose number is the growth of this process's resident memory, at most, by the end of the block."""
    page, end, grown = os.sysconf("SC_PAGE_SIZE"), threading.Event(), [0.0]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    def watch() -> None:
        while not end.wait(0.005):
            grown[0] = max(grown[0], resident() - before)

    before = resident()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        end.set()
        thread.join()
