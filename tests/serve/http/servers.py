"""Servers for tests: the real command in processes of its own, on a free port of the loopback."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

from tests import commands

ROW = {"user": 1, "item": 2, "tags": [3, 4], "history": [5, 6, 7], "age": 30.0, "price": 0.5}


def stream(table: pa.Table, **options: Any) -> bytes:
    """An Arrow IPC stream; ``options`` are those of pyarrow.ipc.IpcWriteOptions."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


class RunningServer:
    """A server that answers.

    Args:
        process: its first process.
        log: what it prints.
        url: its address.
    """

    def __init__(self, process: commands.Command, log: Path, url: str) -> None:
        self.process, self.log, self.url = process, log, url

    def client(self) -> httpx.Client:
        """A client with connections of its own."""
        return httpx.Client(base_url=self.url, timeout=60.0, trust_env=False)

    def printed(self) -> str:
        """Text that it has printed so far."""
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until it has printed ``text``."""
        wait_until(lambda: text in self.printed(), lambda: f"{text!r} is not in:\n{self.printed()}")

    def workers(self) -> list[int]:
        """Process numbers of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(number) for number in children.read_text().split()]


@contextmanager
def running(log: Path, bundle: Path, *options: object) -> Iterator[RunningServer]:
    """Start ``dlrm-mtl serve``, wait for its address, and end it; what does not end by itself is killed."""
    process = commands.start("serve", bundle, "--port", 0, *options, log=log)
    try:
        wait_until(
            lambda: process.poll() is not None or (log.exists() and ": answers, " in log.read_text()), log.read_text
        )
        found = re.search(r"(http://\S+): answers", log.read_text())
        assert found is not None, log.read_text()
        yield RunningServer(process, log, found.group(1))
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)  # it removes what it has put among temporary files
            process.wait(60)


def wait_until(true: Callable[[], object], why: Callable[[], str], seconds: float = 120.0) -> None:
    """Wait until ``true`` is; the test fails with ``why`` after ``seconds``."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(0.02)
