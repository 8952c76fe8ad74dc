"""An output that is written on this machine and then uploaded, for writers that need a local path."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.filesystems import first_line, is_local, locate
from dlrm_mtl.storage.retry import retry

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each retry of a failed upload, in addition to the storage client's own retries."""
THREADS = 8
"""Number of files that are uploaded at a time."""
PROBE = ".writable"
OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems in which a file needs no folder."""


@contextmanager
def staged_output(
    place: str, last: str, option: str = "--output", told: Callable[[float], None] = lambda done: None
) -> Iterator[Path]:
    """Give a local path to write for ``place``; a remote output is uploaded when the block ends without an error.

    Args:
        place: a local path, which is returned unchanged, or a URI of something that does not exist, or of an empty folder.
        last: name of the file in the output that is uploaded last: readers ignore a folder without it.
        option: option by which the user named ``place``.
        told: called with the fraction of the files uploaded so far.

    Raises:
        UserError: ``place`` is taken or cannot be written to, which is checked before the block; the upload fails, and its
            files are removed; or the block raised one, with an explanation of the local path added.
    """
    filesystem, root = locate(place)
    if is_local(filesystem):
        yield Path(root if "://" in place else place)
        return
    _check(filesystem, root, place, option)
    with tempfile.TemporaryDirectory(prefix="dlrm-mtl-") as folder:
        local = Path(folder) / "output"
        try:
            yield local
        except UserError as error:
            explained = f"{local} (where {place} is made before its upload; TMPDIR names another folder for it)"
            raise UserError(str(error).replace(str(local), explained, 1)) from None
        try:
            _upload(local, filesystem, root, place, last, told)
        except BaseException:
            _remove(filesystem, root)
            raise


def _check(filesystem: fs.FileSystem, root: str, place: str, option: str) -> None:
    """Refuse a place that is not empty, or where no file can be written and removed."""
    try:
        found = filesystem.get_file_info(root)
        inside = fs.FileSelector(root, allow_not_found=True)
        if found.type == fs.FileType.File or filesystem.get_file_info(inside):
            raise UserError(f"{place}: already exists and is not an empty folder; name another one or remove it.")
        if filesystem.type_name not in OBJECT_STORES:
            filesystem.create_dir(root)
        with filesystem.open_output_stream(f"{root}/{PROBE}") as stream:
            stream.write(b"")
        filesystem.delete_file(f"{root}/{PROBE}")
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{place}: cannot be written to ({first_line(error)}); check the name, the credentials and their permissions, or "
            f"name another one with {option}."
        ) from None
    _remove(filesystem, root)


def _upload(
    local: Path, filesystem: fs.FileSystem, root: str, place: str, last: str, told: Callable[[float], None]
) -> None:
    names = {path: path.relative_to(local).as_posix() for path in sorted(local.rglob("*")) if path.is_file()}
    targets = {path: f"{root}/{name}" for path, name in names.items()} if local.is_dir() else {local: root}

    def copy(source: Path) -> None:
        retry(lambda: _copy(source, filesystem, targets[source]), place, PAUSES, mistake, done="written")

    def mistake(error: Exception) -> UserError:
        return UserError(
            f"{place}: cannot be written ({first_line(error)}); check the storage, the credentials and their permissions, and "
            "try again."
        )

    final = [path for path in targets if names.get(path) == last]
    with ThreadPoolExecutor(THREADS) as pool:
        for count, _ in enumerate(pool.map(copy, (path for path in targets if path not in final)), 1):
            told(count / len(targets))
    for path in final:
        copy(path)


def _copy(source: Path, filesystem: fs.FileSystem, target: str) -> None:
    if filesystem.type_name not in OBJECT_STORES:
        filesystem.create_dir(target.rpartition("/")[0])
    fs.copy_files(str(source), target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)


def _remove(filesystem: fs.FileSystem, root: str) -> None:
    """Remove the uploaded files; a bucket itself is kept."""
    with suppress(OSError, pa.ArrowException):
        if "/" in root:
            filesystem.delete_dir(root)
        else:
            filesystem.delete_dir_contents(root)
