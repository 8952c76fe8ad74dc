"""The files of one run, in a folder of this machine or on an object store, behind one interface.

Names are paths relative to the run's folder, such as ``checkpoints/latest``. Processes work in :attr:`RunStore.local`: the
run's folder itself, or a staging folder of each host, whose content is published.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import first_process_only
from dlrm_mtl.storage.filesystems import first_line
from dlrm_mtl.storage.output import sync_folder, write_whole

THREADS = 8
"""Number of parallel requests. Arrow itself uploads the parts of a large file in parallel."""
PIECE = 16 << 20
"""Largest number of bytes of one request, unless a single range is larger."""
LOCAL_PIECE = 2 << 20
"""The same on this machine: small enough that what is read is still in the processor's cache when it is checked and copied."""
GAP = 64 << 10
"""Largest gap in bytes between two ranges of one request; the gap is read and dropped to save a request."""
GROUPS = 16 * THREADS
"""Number of requests after which failures are counted from zero again."""


class StorageError(UserError):
    """A place cannot be read or written now; what is stored there is not known to be wrong."""


@dataclass(frozen=True)
class FreeRoom:
    """Free room in a folder."""

    bytes: int
    files: int | None
    """None if any number fits."""


@dataclass(frozen=True, eq=False)
class Range:
    """Bytes ``start`` to ``stop`` of the file ``name``, and a function that receives them, in any thread, at least once."""

    name: str
    start: int
    stop: int
    use: Callable[[memoryview], None]


class RunStore(ABC):
    """Files of one run.

    Args:
        place: the user's name of the folder: a path or a URI.
        local: folder of this machine in which processes work.
    """

    def __init__(self, place: str, local: Path) -> None:
        self.place = place
        self.local = local
        self.piece = PIECE
        """Maximum bytes of one request, unless a single range is larger."""

    @abstractmethod
    def files(self, folder: str) -> dict[str, int]:
        """Files in ``folder`` and below, with their sizes in bytes."""

    def names(self, folder: str) -> list[str]:
        """Names of files, and of folders that hold files, directly in ``folder``."""
        skipped = len(folder) + 1 if folder else 0
        return first_parts(name[skipped:] for name in self.files(folder))

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Content of a small file; None if it does not exist."""

    def read_for_all(self, name: str) -> bytes | None:
        """Content of a small file, read by the first process; None if it does not exist. Every process must call this."""
        return first_process_only(lambda: self.read(name))

    @abstractmethod
    def write(self, name: str, content: str) -> None:
        """Write a small file atomically."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file or folder, if it exists."""

    @abstractmethod
    def check_writable(self, option: str = "--output") -> list[str]:
        """Names in the run's folder, after checking that files can be written there.

        Args:
            option: option by which the user named the folder, for errors.

        Raises:
            UserError: files cannot be written.
        """

    @abstractmethod
    def restore(self, *names: str) -> None:
        """Copy the small files ``names``, as far as they exist, to :attr:`local`. Every process must call this."""

    @abstractmethod
    def publish(self) -> None:
        """Publish all changes in :attr:`local`, except checkpoints; for the first process."""

    @abstractmethod
    def writes_here(self) -> bool:
        """Return True if this process does the work for :attr:`local` that only one process may do."""

    # A folder appears whole in four works, each of which every process does when all have done the one before: it is begun,
    # written in, uploaded and published. None of them communicates.

    def temporary(self, name: str) -> Path:
        """Local folder to write the future folder ``name`` in."""
        return self.local / f"{name}.tmp"

    def begin_folder(self, name: str) -> FreeRoom | None:
        """Make the empty folder to write in, and remove those of earlier attempts. The room there, from one process."""
        if not self.writes_here():
            return None
        temporary = self.temporary(name)
        for left in temporary.parent.glob("*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        temporary.mkdir(parents=True)
        found = os.statvfs(temporary)
        # A file system without a fixed number of files says 0 of 0.
        return FreeRoom(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)

    @abstractmethod
    def upload_folder(self, name: str) -> dict[str, int]:
        """Bring what was written on this host to where it is published from; names and sizes of these files."""

    @abstractmethod
    def publish_folder(self, name: str, last: str, content: str, sizes: dict[str, int]) -> None:
        """Let the folder appear; for the first process.

        Args:
            name: the folder.
            last: file in it that marks it as complete; it appears with, or after, all others.
            content: content of that file.
            sizes: of the files of all hosts, as :meth:`upload_folder` returned them.
        """

    def drop_folder(self, name: str) -> None:
        """Remove what this host has left of the folder to write in."""
        if self.writes_here():
            shutil.rmtree(self.temporary(name), ignore_errors=True)

    @abstractmethod
    def host(self) -> str:
        """Name of this machine; the same on all machines that share :attr:`local`."""

    @abstractmethod
    def _read_group(self, group: list[Range]) -> None:
        """Read the neighbouring ranges ``group`` of one file in one request."""

    @abstractmethod
    def _attempts(self, groups: list[list[Range]]) -> None:
        """Read all ``groups``, several at a time."""

    def read_ranges(self, ranges: Iterable[Range]) -> None:
        """Read ``ranges``, several requests at a time, and pass them to their functions.

        Raises:
            UserError: a range cannot be read, or does not exist.
        """
        groups = neighbours(ranges, self.piece)
        for first in range(0, len(groups), GROUPS):
            self._attempts(groups[first : first + GROUPS])


class LocalStore(RunStore):
    """A run in a folder of this machine, or of a file system that all hosts share."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), path)
        self.piece = min(PIECE, LOCAL_PIECE)
        self._buffers = threading.local()

    def files(self, folder: str) -> dict[str, int]:
        sizes = {}
        for root, _, names in os.walk(self.local / folder):
            for path in (Path(root, name) for name in names):
                with contextlib.suppress(FileNotFoundError):  # removed since, by the job that writes here
                    if path.is_file():
                        sizes[path.relative_to(self.local).as_posix()] = path.stat().st_size
        return sizes

    def names(self, folder: str) -> list[str]:
        root = self.local / folder
        try:
            return sorted(os.listdir(root)) if root.is_dir() else []
        except OSError as error:
            raise self._unreadable(folder, error) from None

    def read(self, name: str) -> bytes | None:
        try:
            return (self.local / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(name, error) from None

    def write(self, name: str, content: str) -> None:
        try:
            write_whole(self.local / name, content)
        except OSError as error:
            raise self._unwritable(name, error) from None

    def remove(self, name: str) -> None:
        path = self.local / name
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.place}/{name}: cannot be removed ({error.strerror}); correct the permissions."
            ) from None

    def check_writable(self, option: str = "--output") -> list[str]:
        existing = self.local
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{self.place}: this output folder cannot be written to; name another one with {option}.")
        return os.listdir(self.local) if self.local.is_dir() else []

    def restore(self, *names: str) -> None:
        """Do nothing: all processes see the folder."""

    def publish(self) -> None:
        """Do nothing: the folder is the run's."""

    def writes_here(self) -> bool:
        return dist.get_rank() == 0

    def upload_folder(self, name: str) -> dict[str, int]:
        return {}

    def publish_folder(self, name: str, last: str, content: str, sizes: dict[str, int]) -> None:
        temporary, target = self.temporary(name), self.local / name
        write_whole(temporary / last, content)
        if target.exists():  # an attempt that was killed has left it incomplete
            self.remove(name)
        os.rename(temporary, target)
        sync_folder(target.parent)

    def host(self) -> str:
        return ""

    def _read_group(self, group: list[Range]) -> None:
        start, stop = group[0].start, max(each.stop for each in group)
        buffer = self._buffer(stop - start)
        try:
            with open(self.local / group[0].name, "rb", buffering=0) as file:
                file.seek(start)
                count = 0
                while count < len(buffer) and (more := file.readinto(buffer[count:])):
                    count += more
        except OSError as error:
            raise self._unreadable(group[0].name, error) from None
        if count < len(buffer):
            raise UserError(
                f"{self.place}/{group[0].name}: ends after {start + count:,} bytes, before {stop:,}; it was cut short."
            )
        for each in group:
            each.use(buffer[each.start - start : each.stop - start])

    def _buffer(self, size: int) -> memoryview:
        """Memory of this thread, which is used for one group after the other: new memory costs as much as reading."""
        found: memoryview | None = getattr(self._buffers, "memory", None)
        if found is None or len(found) < size:
            found = self._buffers.memory = np.empty(size, np.uint8).data
        return found[:size]

    def _attempts(self, groups: list[list[Range]]) -> None:
        with ThreadPoolExecutor(min(4, len(groups))) as pool:
            for _ in pool.map(self._read_group, groups):
                pass

    def _unwritable(self, name: str, error: OSError) -> UserError:
        return StorageError(
            f"{self.place}/{name}: cannot be written ({error.strerror}); make room, or correct the permissions."
        )

    def _unreadable(self, name: str, error: OSError) -> UserError:
        return StorageError(f"{self.place}/{name}: cannot be read ({error.strerror or first_line(error)}).")


def neighbours(ranges: Iterable[Range], piece: int) -> list[list[Range]]:
    """Groups of ranges that one request reads together."""
    groups: list[list[Range]] = []
    stop = 0
    for one in sorted(ranges, key=lambda one: (one.name, one.start)):
        group = groups[-1] if groups else None
        if group and group[0].name == one.name and one.start - stop <= GAP and one.stop - group[0].start <= piece:
            group.append(one)
            stop = max(stop, one.stop)
        else:
            groups.append([one])
            stop = one.stop
    return groups


def first_parts(paths: Iterable[str]) -> list[str]:
    """First parts of relative paths, sorted, each once."""
    return sorted({path.split("/", 1)[0] for path in paths})
