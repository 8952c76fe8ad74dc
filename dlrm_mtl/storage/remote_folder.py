"""A run folder on an object store: a copy of a local folder that is updated at every checkpoint.

Processes work in a local folder of their host (see :mod:`~dlrm_mtl.run.staging`). A checkpoint's files are uploaded by the
host that wrote them. A pointer names the checkpoint only when the store has all its files.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import torch.distributed as dist
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import local_rank
from dlrm_mtl.storage.filesystems import first_line
from dlrm_mtl.storage.retry import retry
from dlrm_mtl.storage.run_store import THREADS, FreeRoom, Range, RunStore, StorageError, first_parts

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each retry of a failed transfer, in addition to the storage client's own retries."""
PROBE = ".writable"

logger = logging.getLogger(__name__)

T = TypeVar("T")
Part = TypeVar("Part")


class RemoteStore(RunStore):
    """A run on an object store; every host works in a staging folder.

    Failed transfers are retried, with a remark, and then end in a :class:`UserError`.

    Args:
        uri: URI from the user.
        filesystem: the store.
        root: path of the folder in ``filesystem``.
        local: staging folder of this host.
        apart: folder in it that :meth:`publish` skips.
    """

    def __init__(self, uri: str, filesystem: fs.FileSystem, root: str, local: Path, apart: str = "checkpoints") -> None:
        super().__init__(uri.rstrip("/"), local)
        self.filesystem = filesystem
        self.root = root
        self.apart = apart
        self._published: dict[str, tuple[int, int]] = {}
        self.ever_succeeded = False
        self.gave_up = False

    def files(self, folder: str) -> dict[str, int]:
        """Files in ``folder`` and below, with their sizes in bytes."""
        return self._retry("read", folder, lambda: self._files(folder))

    def read(self, name: str) -> bytes | None:
        """Content of a small file; None if it does not exist."""

        def read() -> bytes | None:
            try:
                with self.filesystem.open_input_stream(self._path(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._retry("read", name, read)

    def read_for_all(self, name: str) -> bytes | None:
        """Content of a small file, read by the first process; None if it does not exist. Every process must call this."""
        content = super().read_for_all(name)
        self.ever_succeeded = True
        return content

    def write(self, name: str, content: str) -> None:
        """Write a small file, atomically on an object store."""
        self._retry("written", name, lambda: self._write(name, content))

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it exists."""

        def remove() -> None:
            path = self._path(name)
            kind = self.filesystem.get_file_info(path).type
            if kind == fs.FileType.Directory:
                try:
                    self.filesystem.delete_dir(path)
                except FileNotFoundError:  # on Google's store a folder disappears with its content
                    if self.filesystem.get_file_info(path).type != fs.FileType.NotFound:
                        raise
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(path)

        self._retry("removed", name, remove)

    def check_writable(self, option: str = "--output") -> list[str]:
        """Names in the run folder, after writing and removing a file there; without retries.

        Raises:
            UserError: listing, writing or removing fails.
        """
        try:
            names = first_parts(self._files(""))
            self._write(PROBE, "")
            self.filesystem.delete_file(self._path(PROBE))
            self.ever_succeeded = True
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.place}: this output folder cannot be written to ({first_line(error)}); check the name, the credentials "
                f"and their permissions, or name another one with {option}."
            ) from None
        return [name for name in names if name != PROBE]

    def restore(self, *names: str) -> None:
        """Copy the small files ``names``, as far as they exist, to every host. Every process must call this."""
        found = {name: self.read_for_all(name) for name in names}
        if local_rank() == 0:
            for name, content in found.items():
                if content is not None:
                    (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                    (self.local / name).write_bytes(content)
        dist.barrier()

    def publish(self) -> None:
        """Upload all changed files except checkpoints; for the first process."""
        changed = {}
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            state = path.stat()
            if path.is_file() and not name.startswith(f"{self.apart}/"):
                changed[name] = (state.st_size, state.st_mtime_ns)
        names = [name for name, state in changed.items() if self._published.get(name) != state]
        self._transfer("written", names, "", lambda name: self._copy(self.local / name, name))
        self._published.update(changed)

    def publish_after_error(self) -> None:
        """Upload changed files at the end of a failed run; a failure is only logged, not to hide the run's error."""
        if self.gave_up or not self._published:
            return
        try:
            self.publish()
        except UserError as error:
            logger.warning("%s", error)

    def writes_here(self) -> bool:
        return local_rank() == 0

    def begin_folder(self, name: str) -> FreeRoom | None:
        if dist.get_rank() == 0 and self.files(name):  # of an attempt that was killed
            self.remove(name)
        return super().begin_folder(name)

    def upload_folder(self, name: str) -> dict[str, int]:
        """Upload the files of this host."""
        if not self.writes_here():
            return {}
        staged = self.temporary(name)
        here = {f"{name}/{path.name}": path.stat().st_size for path in sorted(staged.iterdir())}

        def copy(file: str) -> None:
            self._copy(staged / file.rpartition("/")[2], file)

        self._transfer("written", here, name, copy)
        return here

    def publish_folder(self, name: str, last: str, content: str, sizes: dict[str, int]) -> None:
        """Upload ``last`` after checking the sizes of the files of all hosts."""
        there = self.files(name)
        for file, size in sizes.items():
            if there.get(file) != size:
                raise UserError(
                    f"{self.place}/{file}: has {there.get(file, 0):,} bytes after its upload, where {size:,} were "
                    "written; check that no other run writes there, and go on with --resume."
                )
        self.write(f"{name}/{last}", content)

    def host(self) -> str:
        return socket.gethostname()

    def _attempts(self, groups: list[list[Range]]) -> None:
        self._transfer("read", groups, groups[0][0].name.rpartition("/")[0], self._read_group)

    def _read_group(self, group: list[Range]) -> None:
        name, start, stop = group[0].name, group[0].start, max(each.stop for each in group)
        buffer = bytearray(stop - start)
        with self.filesystem.open_input_file(self._path(name)) as file:
            if file.size() < stop:
                raise OSError(f"{name.rpartition('/')[2]} ends after {file.size():,} bytes, before {stop:,}")
            with file.get_stream(start, stop - start) as stream:
                count = stream.readinto(buffer)
        if count != stop - start:
            raise OSError(f"{name}: {count:,} bytes came where {stop - start:,} were asked for")
        for each in group:
            each.use(memoryview(buffer)[each.start - start : each.stop - start])

    def _transfer(self, done: str, parts: Iterable[Part], place: str, copy: Callable[[Part], None]) -> None:
        """Call ``copy`` with each of ``parts``, several at a time, and retry failed ones.

        Args:
            done: past participle for errors: ``read`` or ``written``.
            parts: parts to transfer.
            place: folder that errors name.
            copy: function that transfers one part, in any thread.

        Raises:
            UserError: a part still fails after all pauses.
        """
        left = list(parts)

        def attempt(part: Part) -> Exception | None:
            try:
                copy(part)
            except (OSError, pa.ArrowException) as error:
                return error
            return None

        def attempts() -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                errors = list(pool.map(attempt, left))
            left[:] = [part for part, error in zip(left, errors, strict=True) if error]
            for error in errors:
                if error:
                    raise error

        if left:
            self._retry(done, place, attempts)

    def _copy(self, source: Path, name: str) -> None:
        fs.copy_files(
            str(source),
            self._path(name),
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=self.filesystem,
        )

    def _retry(self, done: str, name: str, action: Callable[[], T]) -> T:
        """Result of ``action``, by which ``name`` is ``done`` (read, written ...); retried after an error, see :data:`PAUSES`.

        There are no retries before any action has succeeded: the name or the credentials are probably wrong.
        """
        place = f"{self.place}/{name}".rstrip("/")

        def mistake(error: Exception) -> UserError:
            if isinstance(error, FileNotFoundError):
                return UserError(f"{place}: has been removed meanwhile ({first_line(error)}); try again.")
            self.gave_up = True
            return StorageError(
                f"{place}: cannot be {done} ({first_line(error)}); check the storage, the credentials and their "
                "permissions, and try again; a training run goes on from the last checkpoint there with --resume."
            )

        result = retry(action, place, PAUSES if self.ever_succeeded else (), mistake, done=done)
        self.ever_succeeded = True
        return result

    def _write(self, name: str, content: str) -> None:
        with self.filesystem.open_output_stream(self._path(name)) as stream:
            stream.write(content.encode())

    def _files(self, folder: str) -> dict[str, int]:
        # Recursive: on Google's store, Arrow does not list a folder in its parent.
        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        infos = self.filesystem.get_file_info(selector)
        return {info.path[len(self.root) + 1 :]: info.size for info in infos if info.type == fs.FileType.File}

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")
