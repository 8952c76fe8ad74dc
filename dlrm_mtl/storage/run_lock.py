"""The lock on a run's folder: only one job writes there, and a second one gets the name of the first.

On this machine, and on file systems that all hosts share, it is a file that is locked with ``flock`` if that works. On an
object store it is a lease: an object that the holder renews. Both hold the same text, and are renewed by a thread.

A lock is stale, and is taken over, in two cases: its holder's process is gone from this machine, or the lock is held on
another machine and not renewed for :data:`WATCH_SECONDS` while it is watched. So no clocks are compared.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.kernel import machine, process_start
from dlrm_mtl.storage.run_store import LocalStore, RunStore

LOCK = "run.lock"
"""Name of the file or object in a run's folder."""
RENEW_SECONDS = 10.0
"""Seconds after which the holder renews its lock."""
WATCH_SECONDS = 35.0
"""Seconds for which the lock of another machine is watched."""
RESTART_SECONDS = 60.0
"""Seconds for which a restarted job waits for its former processes to end."""
SETTLE_SECONDS = 0.5
"""Seconds after which a new lease is read again: of two simultaneous jobs, the later writer has it."""
SIZE = 512
"""Size of the file in bytes: it is overwritten in place, which needs no space on a full disk."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Holder of a lock."""

    token: str
    """Token of this acquisition."""
    host: str
    pid: int
    started: str
    """Start time of the process, from the kernel."""
    machine: str
    """Identity of the running kernel."""
    namespace: str
    """Namespace of process ids; containers on one machine have their own."""
    job: str
    """Job id of the launcher; empty without one."""
    since: str
    renewed: int = 0

    def text(self) -> str:
        """Content of the lock's file."""
        return json.dumps(asdict(self)).ljust(SIZE - 1) + "\n"

    def is_gone(self) -> bool:
        """Return True if the holder's process is known to be gone."""
        own = this_process("")
        return (self.machine, self.namespace) == (own.machine, own.namespace) and process_start(
            self.pid
        ) != self.started

    def refusal(self, place: str) -> UserError:
        """Error for a second job."""
        return UserError(
            f"{place}: process {self.pid} on {self.host} has been writing into this folder since {self.since}; wait for its "
            "end, or stop it, or name another folder with --output."
        )


def this_process(job: str) -> Holder:
    """This process as a new holder of a lock, for the launcher's ``job``."""
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=process_start(os.getpid()),
        machine=machine(),
        namespace=_link("/proc/self/ns/pid"),
        job=job,
        since=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def _parse(content: bytes | None) -> Holder | None:
    try:
        found = Holder(**json.loads(content or b""))
    except (ValueError, TypeError):
        return None
    types = {field.name: int if field.name in ("pid", "renewed") else str for field in fields(Holder)}
    return found if all(isinstance(getattr(found, name), kind) for name, kind in types.items()) else None


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


class RunLock(ABC):
    """The lock of a run's folder, held inside a ``with`` block; for one process of a job.

    Args:
        place: the user's name of the folder.
        job: job id of the launcher; a former holder of the same job on another machine is gone.
        restarted: True if the launcher has restarted the job: its former processes may still be ending.
    """

    def __init__(self, place: str, job: str = "", restarted: bool = False) -> None:
        self.place = place
        self.job = "" if job == "none" else job
        self.restarted = restarted
        self.holder: Holder | None = None
        """This process, while it holds the lock."""
        self._taken_by: Holder | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        own = this_process(self.job)
        self._take(own)
        self.holder = own
        self._end.clear()
        self._thread = threading.Thread(target=self._renew_until_end, name="run lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self.holder is not None:
            self._release()
        self.holder = None

    def check(self) -> None:
        """Raise :class:`UserError` if another job has taken the lock over, as after a loss of connection."""
        if self._taken_by is not None:
            raise self._taken_by.refusal(self.place)

    def _renew_until_end(self) -> None:
        assert self.holder is not None
        while not self._end.wait(RENEW_SECONDS):
            own = replace(self.holder, renewed=self.holder.renewed + 1)
            with contextlib.suppress(OSError, UserError):  # the next attempt may succeed; others wait longer than that
                found = self._read()
                if found is None or found.token == own.token:
                    self._write(own)
                    self.holder = own
                else:
                    self._taken_by = found
                    return

    def _takes_over(self, found: Holder) -> bool:
        """Return True if the lock of ``found`` is stale. Otherwise wait for it after a restart, or refuse."""
        if found.is_gone():
            return True
        own = this_process(self.job)
        elsewhere = found.machine != own.machine
        if elsewhere and found.job and found.job == own.job:
            return True
        logger.info(
            "%s: is locked by process %d on %s; looking for %.0f seconds whether it is still there",
            self.place,
            found.pid,
            found.host,
            WATCH_SECONDS if elsewhere else RESTART_SECONDS,
        )
        end = time.monotonic() + (WATCH_SECONDS if elsewhere else RESTART_SECONDS)
        while time.monotonic() < end:
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
            now = self._read()
            if now is None or (not elsewhere and now.is_gone()):
                return True
            if now != found and (elsewhere or now.token != found.token):
                return False
        return elsewhere

    @abstractmethod
    def _take(self, own: Holder) -> None:
        """Take the lock for ``own``; raises :class:`UserError`, which names the holder, if another process has it."""

    @abstractmethod
    def _read(self) -> Holder | None:
        """Holder of the lock, if any."""

    @abstractmethod
    def _write(self, own: Holder) -> None:
        """Renew the lock."""

    @abstractmethod
    def _release(self) -> None:
        """Release the lock."""


class FileLock(RunLock):
    """The lock of a local folder: the file ``run.lock`` in it, which is removed at the end.

    Args:
        folder: folder of the run.
        place: the user's name of the folder.
        job: see :class:`RunLock`.
        restarted: see :class:`RunLock`.
    """

    def __init__(self, folder: Path, place: str, job: str = "", restarted: bool = False) -> None:
        super().__init__(place, job, restarted)
        self.path = folder / LOCK
        self._file = -1

    def _take(self, own: Holder) -> None:
        end = time.monotonic() + (RESTART_SECONDS if self.restarted else 0.0)
        while not self._attempt(own):
            if time.monotonic() >= end:
                found = self._read()
                if found is None:
                    raise UserError(f"{self.place}: another process is writing into this folder; wait for its end.")
                raise found.refusal(self.place)
            time.sleep(0.2)

    def _attempt(self, own: Holder) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to ({error.strerror}); correct the permissions.") from None
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                flocked = True
            except BlockingIOError:
                return False
            except OSError:  # some file systems have no locks
                flocked = False
            if not self._is_there(file):
                return False
            found = _parse(os.pread(file, SIZE, 0))
            if found is not None and not (flocked and found.machine == own.machine):
                if not flocked and not found.is_gone() and found.machine == own.machine and not self.restarted:
                    return False
                if not self._takes_over(found):
                    raise found.refusal(self.place)
            if found is not None:
                logger.info("%s: process %d on %s, which held the lock, is gone", self.place, found.pid, found.host)
            os.ftruncate(file, 0)
            os.pwrite(file, own.text().encode(), 0)
            self._file, file = file, -1
            return True
        finally:
            if file >= 0:
                os.close(file)

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(file))
        except OSError:  # its holder has just removed it
            return False

    def _read(self) -> Holder | None:
        try:
            return _parse(self.path.read_bytes())
        except OSError:
            return None

    def _write(self, own: Holder) -> None:
        os.pwrite(self._file, own.text().encode(), 0)

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_there(self._file):
                self.path.unlink()
        os.close(self._file)
        self._file = -1


class Lease(RunLock):
    """The lock of a folder on an object store: the object ``run.lock``.

    Args:
        store: files of the run.
        job: see :class:`RunLock`.
        restarted: see :class:`RunLock`.
    """

    def __init__(self, store: RunStore, job: str = "", restarted: bool = False) -> None:
        super().__init__(store.place, job, restarted)
        self.store = store

    def _take(self, own: Holder) -> None:
        found = self._read()
        if found is not None and not found.is_gone():
            here = found.machine == own.machine and not self.restarted
            if here or not self._takes_over(found):
                raise found.refusal(self.place)
        self.store.write(LOCK, own.text())
        time.sleep(SETTLE_SECONDS)
        found = self._read()
        if found is not None and found.token != own.token:
            raise found.refusal(self.place)

    def _read(self) -> Holder | None:
        return _parse(self.store.read(LOCK))

    def _write(self, own: Holder) -> None:
        self.store.write(LOCK, own.text())

    def _release(self) -> None:
        with contextlib.suppress(UserError):
            found = self._read()
            if found is not None and self.holder is not None and found.token == self.holder.token:
                self.store.remove(LOCK)


def lock_of(store: RunStore, job: str = "", restarted: bool = False) -> RunLock:
    """Lock of the run in ``store``, not yet taken."""
    if isinstance(store, LocalStore):
        return FileLock(store.local, store.place, job, restarted)
    return Lease(store, job, restarted)
