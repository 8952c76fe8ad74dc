"""Writing one file atomically, here or on remote storage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.filesystems import first_line, is_local, locate

COPIED = 5 << 30
"""Size in bytes of the largest object that S3 copies; it renames by copying."""
PIECE = 16 << 20
"""Number of bytes that are read at a time from an object that this process copies."""


def write_whole(path: Path, text: str) -> None:
    """Write a small local file atomically, even across a loss of power."""
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a local folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def output_file(place: str | Path, option: str = "--output") -> Iterator[pa.NativeFile]:
    """Open a new file (path or URI) for writing; it gets its name when the block ends, and is removed after an exception.

    Until then it is called ``NAME.tmp``: an object store shows an upload as soon as the stream is closed, even by an error.
    A killed process leaves that file behind, and readers of Parquet files ignore it.

    Raises:
        UserError: the file exists, or cannot be written; ``option`` is where the user named it.
    """
    filesystem, path = locate(place)
    temporary = f"{path}.tmp"
    try:
        if filesystem.get_file_info(path).type != fs.FileType.NotFound:
            raise UserError(f"{place}: this file exists already; name another with {option}, or remove it.")
        folder = Path(path).parent
        if is_local(filesystem) and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UserError(f"{folder}: this folder cannot be written to; name another place with {option}.")
        stream = filesystem.open_output_stream(temporary)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{place}: cannot be written ({first_line(error)}); name another place with {option}."
        ) from None
    try:
        yield stream
        try:
            size = stream.tell()
            stream.close()
            _rename(filesystem, temporary, path, size)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{place}: cannot be written ({first_line(error)}); name another place with {option}."
            ) from None
    except BaseException:
        with suppress(OSError, pa.ArrowException):
            stream.close()
        with suppress(OSError, pa.ArrowException):
            filesystem.delete_file(temporary)
        raise


def _rename(filesystem: fs.FileSystem, temporary: str, path: str, size: int) -> None:
    if filesystem.type_name != "s3" or size <= COPIED:
        filesystem.move(temporary, path)
        return
    try:
        with filesystem.open_input_stream(temporary) as source, filesystem.open_output_stream(path) as target:
            while piece := source.read(PIECE):
                target.write(piece)
        if (copied := filesystem.get_file_info(path).size) != size:
            raise OSError(f"{copied:,} bytes of {size:,} were copied to its name")
    except BaseException:  # the copy exists once the stream is closed, even by an error
        with suppress(OSError, pa.ArrowException):
            filesystem.delete_file(path)
        raise
    filesystem.delete_file(temporary)
