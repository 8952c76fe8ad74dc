"""Real processes on gloo for tests: quick to start, cleaned up always."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Read when the server imports torch: with other threads than processes that are started afresh, products have other last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
CONTEXT = multiprocessing.get_context("forkserver")
"""Makes processes from one that has imported already what takes ten seconds to import."""
CONTEXT.set_forkserver_preload(["tests.preloaded"])
util.get_temp_dir()  # now: a test that moves temporary files must not take the server's socket with it


def run_processes(count: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240.0) -> list[Any]:
    """Run ``function(rank, *arguments)`` in ``count`` processes of one gloo group; return their results by rank.

    The function must be importable (top level of a module). A failure of one process fails the test with its traceback and
    ends the others.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(count)]
        workers = [
            CONTEXT.Process(
                target=_work, args=(rank, count, Path(folder) / "store", pipes[rank][1], function, arguments)
            )
            for rank in range(count)
        ]
        for worker, (_, sending) in zip(workers, pipes, strict=True):
            worker.start()
            sending.close()
        try:
            return _collect([receiving for receiving, _ in pipes], timeout)
        finally:
            for worker in workers:
                worker.join(timeout=5)
                if worker.is_alive():
                    worker.kill()
                    worker.join()


def _collect(connections: list[Connection], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = dict(enumerate(connections))
    while waiting:
        ready = wait(list(waiting.values()), timeout)
        if not ready:
            raise TimeoutError(f"processes {sorted(waiting)} did not finish in {timeout} s")
        for rank in [rank for rank, connection in waiting.items() if connection in ready]:
            try:
                failed, value = pickle.loads(waiting.pop(rank).recv_bytes())
            except EOFError:
                raise AssertionError(f"process {rank} died") from None
            if failed:
                raise AssertionError(f"process {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in sorted(results)]


def _work(
    rank: int, count: int, store: Path, sending: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(LOCAL_WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(str(store), count), rank=rank, world_size=count)
        sending.send_bytes(pickle.dumps((False, function(rank, *arguments))))
    except BaseException:
        sending.send_bytes(pickle.dumps((True, traceback.format_exc())))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
