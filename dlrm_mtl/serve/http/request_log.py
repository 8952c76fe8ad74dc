"""Files of requests as JSON lines, bounded in size and written by several processes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrm_mtl.core.errors import UserError

WAITING = 256
"""Number of lines that wait to be written; more are left out, and counted."""
logger = logging.getLogger(__name__)


class RequestLog:
    """Appends lines to a file that only its owner can read; a full file becomes ``FILE.1``, in the place of the older one.

    Processes may share the file: a line is one write. A line that cannot be written is left out and counted, and the request
    goes on.

    Args:
        path: file.
        limit: size in bytes from which on another file is begun; on the disk there are at most two of this size, and a line
            for every process.
        lost: called for every line that is left out.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, limit: int, lost: Callable[[], object]) -> None:
        self._path, self._limit, self._lost = path, limit, lost
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no file that can be appended to; name another one.")
        try:
            self._file = _open(path)
            os.fchmod(self._file, 0o600)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); name another file.") from None
        self._lines: queue.Queue[Callable[[], dict[str, Any]] | None] = queue.Queue(WAITING)
        self._told = False
        self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)
        self._thread.start()

    def write(self, entry: Callable[[], dict[str, Any]]) -> None:
        """Write an entry, which is made in the log's own thread; does not wait."""
        try:
            self._lines.put_nowait(entry)
        except queue.Full:
            self._lost()

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._lines.put(None)
        self._thread.join()
        os.close(self._file)

    def _write_all(self) -> None:
        while (entry := self._lines.get()) is not None:
            try:
                self._append((json.dumps(entry(), separators=(",", ":"), default=str) + "\n").encode())
            except OSError as error:
                self._lost()
                if not self._told:
                    self._told = True
                    logger.warning("%s: a request could not be written (%s)", self._path, error.strerror)

    def _append(self, line: bytes) -> None:
        if os.fstat(self._file).st_size >= self._limit:
            self._begin_another()
        written = os.write(self._file, line)
        if written < len(line):
            os.write(self._file, b"\n")  # what follows is a line of its own
            raise OSError(28, "the disk is full")

    def _begin_another(self) -> None:
        """Rename the full file, unless another process has, and open the new one."""
        lock = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                full = self._path.stat().st_ino == os.fstat(self._file).st_ino
            except FileNotFoundError:
                full = False
            if full:
                self._path.rename(self._path.with_name(f"{self._path.name}.1"))
            new = _open(self._path)
        finally:
            os.close(lock)
        os.close(self._file)
        self._file = new


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
