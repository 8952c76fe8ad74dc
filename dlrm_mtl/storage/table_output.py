"""Writing rows to one file, table after table, in the format given by its name."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.filesystems import first_line
from dlrm_mtl.storage.output import output_file

GZIP_LEVEL = 6
"""Compression level of the command gzip."""


class _Format(Protocol):
    """A file format for tables."""

    def __init__(self, sink: Any) -> None: ...

    def write(self, table: pa.Table) -> None:
        """Append rows."""

    def close(self) -> None:
        """Write the end of the file; the sink stays open."""


class _Parquet:
    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, table.schema, compression="zstd")
        try:
            table = table.cast(self._writer.schema)
        except pa.ArrowException as error:  # JSON is untyped: a column may hold integers first, and texts later
            raise UserError(f"--carry: {first_line(error)}; write each column in one type.") from None
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Csv:
    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._header = True

    def write(self, table: pa.Table) -> None:
        refuse_columns(".csv", table.schema)
        pyarrow.csv.write_csv(table, self._sink, pyarrow.csv.WriteOptions(include_header=self._header))
        self._header = False

    def close(self) -> None:
        """Do nothing: a CSV file ends with its last row."""


class _JsonLines:
    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def write(self, table: pa.Table) -> None:
        self._sink.write("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()).encode())

    def close(self) -> None:
        """Do nothing: a file of JSON lines ends with its last row."""


_FORMATS: dict[str, type[_Format]] = {
    ".parquet": _Parquet,
    ".csv": _Csv,
    ".csv.gz": _Csv,
    ".jsonl": _JsonLines,
    ".jsonl.gz": _JsonLines,
}
"""Formats by the ending of a file's name."""


def table_ending(place: str | Path, option: str = "--output") -> str:
    """Ending of a file's name that gives its format.

    Raises:
        UserError: the ending is unknown; ``option`` is where the user named the file.
    """
    name = str(place).lower()
    ending = next((ending for ending in _FORMATS if name.endswith(ending)), None)
    if ending is None:
        raise UserError(
            f"{option} {place}: the name ends in none of {', '.join(_FORMATS)}; choose one of these formats."
        )
    return ending


def refuse_columns(place: str | Path, schema: pa.Schema) -> None:
    """Refuse carried columns that the file's format cannot hold.

    Raises:
        UserError: a column is a list or a structure, and the file is CSV.
    """
    if not table_ending(place).startswith(".csv"):
        return
    for field in schema:
        try:
            pyarrow.csv.write_csv(pa.schema([field]).empty_table(), io.BytesIO())
        except pa.ArrowException:
            raise UserError(
                f"--carry {field.name}: CSV cannot hold a column of the type {field.type}; leave it out, or name the output "
                ".parquet or .jsonl."
            ) from None


@contextmanager
def table_output(place: str | Path, option: str = "--output") -> Iterator[Callable[[pa.Table], None]]:
    """Open a new file (path or URI) for tables; it gets its name when the block ends, and is removed after an exception.

    Args:
        place: the file; the ending of its name gives its format.
        option: where the user named it.

    Yields:
        A function that appends the rows of a table.

    Raises:
        UserError: the ending is unknown; the file exists, or cannot be written; a column does not fit the format.
    """
    ending = table_ending(place, option)
    with output_file(place, option) as stream:
        # No name and no time in the header: the same rows give the same bytes.
        sink = gzip.GzipFile("", "wb", GZIP_LEVEL, stream, 0) if ending.endswith(".gz") else stream
        file = _FORMATS[ending](sink)

        def close() -> None:
            file.close()
            if sink is not stream:
                sink.close()

        def write(table: pa.Table) -> None:
            with _told(place, option):
                file.write(table)

        try:
            yield write
        except BaseException:
            with suppress(OSError, pa.ArrowException):
                close()
            raise
        with _told(place, option):
            close()


@contextmanager
def _told(place: str | Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{place}: cannot be written ({first_line(error)}); name another place with {option}."
        ) from None
