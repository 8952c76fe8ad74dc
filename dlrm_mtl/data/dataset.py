"""Data sets on disk: a folder with ``dataset.yaml`` and one folder of Parquet files per split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.file_kinds import GZIP, LOOKED_AT, PARQUET, is_text, kind_of, unpacked
from dlrm_mtl.core.schema import mapping_of, read_yaml, validate
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.parquet_guard import examining, unreadable
from dlrm_mtl.data.spec import DATASET_FILE, DatasetSpec
from dlrm_mtl.storage.filesystems import first_line, is_local, locate
from dlrm_mtl.storage.retry import retry

FOOTER_THREADS = 16
"""Number of footers read in parallel: remote storage has high latency, but answers many requests at once."""
TO_PARQUET = (
    "make Parquet of a CSV file with `dlrm-mtl prepare table`; with --like DATASET, its ids are those of a data set that is "
    "prepared already, as a trained run needs them"
)
"""Advice for a text file."""
PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each retry of a failed read of remote storage, in addition to the storage client's own retries."""


@dataclass(frozen=True)
class DataFile:
    """One Parquet file whose footer has been read."""

    filesystem: fs.FileSystem
    path: str
    metadata: pq.FileMetaData
    size: int
    """Size in bytes."""
    changed_ns: int | None
    """Modification time in nanoseconds since 1970, if the file system provides it."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.metadata.num_rows)

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the file's columns."""
        return self.metadata.schema.to_arrow_schema()

    @cached_property
    def columns(self) -> Counter[str]:
        """Number of columns of each name."""
        return Counter(self.schema.names)

    def open(self) -> pq.ParquetFile:
        """Open the file without reading its footer again; raises :class:`UserError` if it is gone or has changed."""
        self._refuse_change(self.path)

        def open_file() -> pq.ParquetFile:
            source = self.filesystem.open_input_file(self.path)
            return pq.ParquetFile(source, metadata=self.metadata, pre_buffer=not is_local(self.filesystem))

        return read_again(open_file, self.filesystem, self.path)

    def read_group(self, file: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
        """Read ``columns`` of one row group of ``file`` (this file, opened); raises :class:`UserError` if it is damaged."""
        place = f"{self.path}: row group {group}"

        def read() -> pa.Table:
            return file.read_row_group(group, columns=list(columns), use_threads=False)

        try:
            return read_again(read, self.filesystem, place)
        except UserError:
            self._refuse_change(place)  # a change of the file is the likelier reason
            raise

    def _refuse_change(self, place: str) -> None:
        info = read_again(lambda: self.filesystem.get_file_info(self.path), self.filesystem, place, unreachable)
        if info.type == fs.FileType.NotFound:
            raise UserError(f"{place}: the file has been removed since reading began; put it back, or start anew.")
        if (info.size, info.mtime_ns) != (self.size, self.changed_ns):
            raise UserError(
                f"{place}: the file has changed since reading began; never write to files that are in use: give new data a new "
                "name, and start anew."
            )


@dataclass(frozen=True)
class Split:
    """Parquet files of one split, ordered by name, footers read."""

    name: str
    spec: DatasetSpec
    files: tuple[DataFile, ...]

    @property
    def rows(self) -> int:
        """Number of rows of all files."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class Dataset:
    """A data set whose ``dataset.yaml`` has been read, but not its Parquet files."""

    filesystem: fs.FileSystem
    path: str
    spec: DatasetSpec

    def split(self, name: str) -> Split:
        """List the files of the split ``name`` and read all their footers.

        Raises :class:`UserError` if there is no such split, no Parquet file or no row in it, or a file cannot be read.
        """
        folder = self.folder(name)
        files = open_files(self.filesystem, folder)
        split = Split(name, self.spec, tuple(files))
        if split.rows == 0:
            raise UserError(f"{folder}: its Parquet files hold no rows; write the split {name!r} again.")
        return split

    def folder(self, name: str) -> str:
        """Folder of the split ``name`` in the file system; raises :class:`UserError` if there is no such split."""
        if name not in self.spec.splits:
            place = f"{self.path}/{DATASET_FILE}"
            raise UserError(f"{place}: splits: there is no split {name!r}; {suggest(name, self.spec.splits)}.")
        return f"{self.path}/{self.spec.splits[name].folder}"


def open_dataset(path: str | Path, option: str = "data.path") -> Dataset:
    """Open the data set in the folder ``path`` (or URI): read ``dataset.yaml``; ``option`` is where the user named it.

    Raises :class:`UserError` if the folder or dataset.yaml is missing or malformed.
    """
    filesystem, folder = locate(path)
    if (kind := _kind(filesystem, folder)) != fs.FileType.Directory:
        problem = "is a file" if kind == fs.FileType.File else "there is no such folder"
        raise UserError(
            f"{path}: {problem}; {option} must name a data set's folder, which holds {DATASET_FILE} and which `dlrm-mtl "
            "prepare` makes."
        )
    place = f"{folder}/{DATASET_FILE}"
    if _kind(filesystem, place) != fs.FileType.File:
        raise UserError(
            f"{path}: holds no {DATASET_FILE}; name a data set's folder, or make one with `dlrm-mtl prepare`."
        )
    return Dataset(filesystem, folder, validate(DatasetSpec, read_yaml_file(filesystem, place), place))


def open_files(filesystem: fs.FileSystem, path: str) -> list[DataFile]:
    """Read the footers of the Parquet file ``path``, or of all Parquet files in the folder ``path``, ordered by name.

    Names that begin with ``_`` or ``.`` are skipped, since Spark and other tools write such files. Raises
    :class:`UserError`.
    """
    kind = _kind(filesystem, path)
    if kind == fs.FileType.NotFound:
        raise UserError(f"{path}: there is no such file or folder; check the path.")
    if kind == fs.FileType.File:
        paths = [path]
    else:
        paths = list_files(filesystem, path)
        if not paths:
            raise UserError(f"{path}: holds no Parquet file (*.parquet); {_others(filesystem, path)}.")
    with ThreadPoolExecutor(min(FOOTER_THREADS, len(paths))) as pool:
        return list(pool.map(lambda path: read_footer(filesystem, path), paths))


def list_files(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Paths of all Parquet files in ``folder`` and below, ordered; :func:`open_files` says which names are skipped."""
    selector = fs.FileSelector(folder, recursive=True)
    inside = read_again(lambda: filesystem.get_file_info(selector), filesystem, folder, unreachable)
    return sorted(info.path for info in inside if info.type == fs.FileType.File and _is_data(info.path[len(folder) :]))


def _others(filesystem: fs.FileSystem, folder: str) -> str:
    """Advice for a folder without Parquet files."""
    inside = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    texts = sorted(info.path for info in inside if info.type == fs.FileType.File and info.path.lower().endswith(_TEXTS))
    return f"it holds {Path(texts[0]).name}: {TO_PARQUET}" if texts else "write the data there or name another folder"


_TEXTS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")

Result = TypeVar("Result")


def unreachable(place: str, error: Exception) -> UserError:
    """Error for a path whose existence the storage cannot tell."""
    problem = first_line(error)
    if isinstance(error, PermissionError) or any(word in problem.lower() for word in _DENIED):
        remedy = "check the path, the credentials and their permissions"
    else:
        remedy = "check the path, and that this machine can reach it"
    return UserError(f"{place}: cannot be read ({problem}); {remedy}.")


_DENIED = ("denied", "forbidden", "unauthorized", "credential", "signature", "access key")
"""Words in the errors of storage that refuses a request."""


def read_again(
    read: Callable[[], Result],
    filesystem: fs.FileSystem,
    place: str,
    mistake: Callable[[str, Exception], UserError] = unreadable,
) -> Result:
    """Result of ``read``, which is retried after an error if the storage is remote; see :data:`PAUSES`.

    Raises:
        UserError: ``place`` cannot be read; ``mistake`` makes the error from the last exception.
    """
    pauses = () if is_local(filesystem) else PAUSES
    permanent = (FileNotFoundError, PermissionError)
    return retry(read, place, pauses, lambda error: mistake(place, error), permanent=permanent)


def read_footer(filesystem: fs.FileSystem, path: str) -> DataFile:
    """Read the footer of one Parquet file; raises :class:`UserError` if it has none, or the file is truncated."""

    def read() -> tuple[fs.FileInfo, pq.FileMetaData]:
        info = filesystem.get_file_info(path)
        with filesystem.open_input_file(path) as source:
            return info, pq.read_metadata(source)

    info, metadata = read_again(read, filesystem, path, lambda place, error: _not_parquet(filesystem, place, error))
    with examining(path):
        _refuse_truncation(path, metadata, info.size)
    return DataFile(filesystem, path, metadata, info.size, info.mtime_ns)


def _not_parquet(filesystem: fs.FileSystem, path: str, error: Exception) -> UserError:
    """The error for a file without a footer: what it is, where its first bytes tell, and what makes Parquet of it."""
    try:
        with filesystem.open_input_stream(path) as stream:
            start = bytes(stream.read(LOOKED_AT))
    except (OSError, pa.ArrowException):
        return unreadable(path, error)
    if start.startswith(PARQUET) or PARQUET.startswith(start):  # as far as it goes
        return unreadable(path, error)
    packed = start.startswith(GZIP)
    inside = unpacked(start) if packed else start
    what, remedy = kind_of(inside)
    if not what and inside and is_text(inside):
        what, remedy = "text", TO_PARQUET
    if packed:
        return UserError(
            f"{path}: is {what or 'something'}, compressed by gzip, and not a Parquet file; {remedy or 'decompress it'}."
        )
    return UserError(f"{path}: is {what}, not a Parquet file; {remedy}.") if what else unreadable(path, error)


def _refuse_truncation(path: str, metadata: pq.FileMetaData, size: int) -> None:
    """Refuse a file whose columns reach beyond its end: a file put together from parts may have a footer but lack pages."""
    if metadata.num_row_groups == 0:
        return
    last = metadata.row_group(metadata.num_row_groups - 1)
    for index in range(last.num_columns):
        column = last.column(index)
        start = column.dictionary_page_offset or column.data_page_offset
        if start + column.total_compressed_size > size:
            raise unreadable(path, ValueError(f"column {column.path_in_schema} reaches beyond the end of the file"))


def _kind(filesystem: fs.FileSystem, path: str) -> fs.FileType:
    return read_again(lambda: filesystem.get_file_info(path).type, filesystem, path, unreachable)


def _is_data(relative: str) -> bool:
    parts = relative.strip("/").split("/")
    return relative.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in parts)


def read_yaml_file(filesystem: fs.FileSystem, path: str) -> dict[str, Any]:
    """The YAML mapping in the file ``path`` of a file system; raises :class:`UserError` if it cannot be read."""
    if is_local(filesystem):
        return read_yaml(Path(path))

    def read() -> bytes:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    content = read_again(read, filesystem, path, unreachable)
    try:
        return mapping_of(content.decode(), path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error}); name a readable YAML file.") from None
