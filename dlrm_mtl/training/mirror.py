"""A run folder on an object store: the copy of a local folder that is brought up to date at every checkpoint.

Processes work in a local folder of their host (see :mod:`~dlrm_mtl.training.staging`). A checkpoint's files are uploaded by the
host that wrote them; only when the store has all of them does a pointer name it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import torch.distributed as dist
from pyarrow import fs

from dlrm_mtl.errors import UserError
from dlrm_mtl.training.distributed import first_process_only, local_rank, on_every_process
from dlrm_mtl.training.run_folder import CHECKPOINTS, PROGRESS_FILE

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before a failed transfer is repeated; the client of the storage has its own retries below this."""
THREADS = 8
"""Files that are transferred at a time. Arrow itself uploads the parts of a large file in parallel."""
PROBE = ".writable"

T = TypeVar("T")


class Mirror:
    """The remote copy of one run folder. Names are paths relative to it, such as ``checkpoints/latest``.

    Transfers that fail are repeated, with a remark, and then end in a :class:`UserError`.

    Args:
        uri: what the user calls it.
        filesystem: the store.
        root: the folder's path in ``filesystem``.
        local: the folder of this host that is mirrored.
    """

    def __init__(self, uri: str, filesystem: fs.FileSystem, root: str, local: Path) -> None:
        self.uri = uri.rstrip("/")
        self.filesystem = filesystem
        self.root = root
        self.local = local
        self._published: dict[str, tuple[int, int]] = {}
        self._complete: set[str] = set()
        self._reached = False
        self._lost = False

    def children(self, folder: str) -> list[str]:
        """The names of files and folders directly in ``folder``."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        infos = self._again("read", folder, lambda: self.filesystem.get_file_info(selector))
        return sorted(info.base_name for info in infos)

    def files(self, folder: str) -> dict[str, int]:
        """The files in ``folder`` and below, with their sizes in bytes."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        infos = self._again("read", folder, lambda: self.filesystem.get_file_info(selector))
        return {info.path[len(self.root) + 1 :]: info.size for info in infos if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""

        def read() -> bytes | None:
            try:
                with self.filesystem.open_input_stream(self._path(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._again("read", name, read)

    def write(self, name: str, content: str) -> None:
        """Write a small file; on an object store it is seen either before or after, never in between."""
        self._again("written", name, lambda: self._write(name, content))

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there."""

        def remove() -> None:
            path = self._path(name)
            kind = self.filesystem.get_file_info(path).type
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(path)

        self._again("removed", name, remove)

    def check_writable(self) -> list[str]:
        """The names in the run folder, after a file was written there and removed; nothing is repeated here.

        Raises:
            UserError: one of the three cannot be done.
        """
        try:
            names = self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
            self._write(PROBE, "")
            self.filesystem.delete_file(self._path(PROBE))
            self._reached = True
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.uri}: this output folder cannot be written to ({_line(error)}); check the name, the credentials and "
                "their permissions, or name another one with --output."
            ) from None
        return sorted(info.base_name for info in names if info.base_name != PROBE)

    def restore(self, *names: str) -> None:
        """Bring the small files ``names``, as far as they exist, to every host; to be called on every process."""
        found = first_process_only(lambda: {name: self.read(name) for name in names})
        if local_rank() == 0:
            for name, content in found.items():
                if content is not None:
                    (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                    (self.local / name).write_bytes(content)
        dist.barrier()

    def publish(self) -> None:
        """Upload what lies beside the checkpoints and has changed since the last time; for the first process."""
        changed = {}
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            state = path.stat()
            if path.is_file() and not name.startswith(f"{CHECKPOINTS}/"):
                changed[name] = (state.st_size, state.st_mtime_ns)
        self._upload(name for name, state in changed.items() if self._published.get(name) != state)
        self._published.update(changed)

    def publish_last_words(self) -> None:
        """The same for a run that ends with an error, which no other error may hide."""
        if self._lost or not self._published:
            return
        try:
            self.publish()
        except UserError as error:
            print(error, file=sys.stderr, flush=True)

    def upload_checkpoint(self, name: str) -> None:
        """Upload the tensors of the checkpoint ``step_N`` that this host has; to be called on every process.

        Returns when the store has the files of all hosts, checked by their sizes. Until its progress.json is written, too, the
        checkpoint does not count as one.

        Raises:
            UserError: on all processes, if one of them could not.
        """
        folder = f"{CHECKPOINTS}/{name}"
        there = first_process_only(lambda: self.files(folder))

        def upload() -> dict[str, int]:
            if local_rank() != 0:
                return {}
            paths = [path for path in (self.local / folder).iterdir() if path.name != PROGRESS_FILE]
            here = {f"{folder}/{path.name}": path.stat().st_size for path in paths}
            self._upload((file for file, size in here.items() if there.get(file) != size), folder)
            return here

        def compare() -> None:
            there = self.files(folder)
            for file, size in (pair for part in parts for pair in part.items()):
                if there.get(file) != size:
                    raise UserError(
                        f"{self.uri}/{file}: has {there.get(file, 0):,} bytes after its upload, where {size:,} were written; "
                        "check that no other run writes there, and go on with --resume."
                    )

        parts = on_every_process(upload)
        first_process_only(compare)

    def fetch_checkpoint(self, name: str) -> None:
        """Download what the store has of the checkpoint ``step_N`` and this host has not; to be called on every process.

        What is not complete on the store is left there.
        """
        if name in self._complete:
            return
        folder = f"{CHECKPOINTS}/{name}"
        there = first_process_only(lambda: self.files(folder))
        if f"{folder}/{PROGRESS_FILE}" not in there:
            return

        def download() -> None:
            if local_rank() == 0:
                (self.local / folder).mkdir(parents=True, exist_ok=True)
                missing = {file: size for file, size in there.items() if _size(self.local / file) != size}
                self._download(missing, folder)

        on_every_process(download)
        self._complete.add(name)

    def _upload(self, names: Iterable[str], place: str = "") -> None:
        def copy(name: str) -> None:
            fs.copy_files(
                str(self.local / name),
                self._path(name),
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=self.filesystem,
            )

        self._transfer("written", names, place, copy)

    def _download(self, sizes: dict[str, int], place: str) -> None:
        def copy(name: str) -> None:
            target = self.local / name
            fs.copy_files(
                self._path(name),
                str(target),
                source_filesystem=self.filesystem,
                destination_filesystem=fs.LocalFileSystem(),
            )
            if _size(target) != sizes[name]:
                raise OSError(f"{target.name} came with {_size(target):,} bytes, not {sizes[name]:,}")

        self._transfer("read", sizes, place, copy)

    def _transfer(self, done: str, names: Iterable[str], place: str, copy: Callable[[str], None]) -> None:
        """Copy several files at a time, and those that failed again."""
        left = list(names)

        def attempt(name: str) -> Exception | None:
            try:
                copy(name)
            except (OSError, pa.ArrowException) as error:
                return error
            return None

        def attempts() -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                failed = {name: error for name, error in zip(left, pool.map(attempt, left), strict=True) if error}
            left[:] = failed
            if left:
                raise failed[left[0]]

        if left:
            self._again(done, place, attempts)

    def _again(self, done: str, name: str, action: Callable[[], T]) -> T:
        """The result of ``action``, by which ``name`` is to be ``done``; repeated after an error, see :data:`PAUSES`.

        What has never worked is not repeated: the name or the credentials will be wrong.
        """
        place = f"{self.uri}/{name}".rstrip("/")
        for pause in (*(PAUSES if self._reached else ()), None):
            try:
                result = action()
                self._reached = True
                return result
            except FileNotFoundError as error:
                raise UserError(f"{place}: has been removed meanwhile ({_line(error)}); try again.") from None
            except (OSError, pa.ArrowException) as error:
                if pause is None:
                    self._lost = True
                    raise UserError(
                        f"{place}: cannot be {done} ({_line(error)}); check the storage, the credentials and their "
                        "permissions, and try again; a training run goes on from the last checkpoint there with --resume."
                    ) from None
                print(
                    f"{place}: cannot be {done} ({_line(error)}); trying again in {pause:g} s",
                    file=sys.stderr,
                    flush=True,
                )
                time.sleep(pause)
        raise AssertionError

    def _write(self, name: str, content: str) -> None:
        with self.filesystem.open_output_stream(self._path(name)) as stream:
            stream.write(content.encode())

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
