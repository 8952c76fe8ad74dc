"""Preparing data sets that are larger than memory: a DuckDB database on disk, and Parquet written as a stream.

For one input, one set of options and one version of DuckDB and pyarrow, the files are the same byte for byte, for any
memory limit and number of threads. Every stream of rows is in a total order or in the order of the raw file, and every
random number is a pure function of the seed and the row (:mod:`dlrm_mtl.core.randomness`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import memory_bytes
from dlrm_mtl.core.sql import file_literal
from dlrm_mtl.prepare.common.io import connect_on_disk

Memory = Annotated[
    str | None,
    typer.Option(
        help="Memory for sorting, grouping and joining, such as 8GB; what does not fit goes to disk beside the output. "
        "Default: half of the machine's.",
        show_default=False,
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of DuckDB; default: all.", show_default=False)]

SPLITS = ("train", "validation", "test")
"""Names of the splits, by their numbers."""

ROW_GROUP_ROWS = 65536
FILE_ROWS = 16 * ROW_GROUP_ROWS
BATCH_ROWS = 2 * ROW_GROUP_ROWS
"""Number of rows of a stream in memory at a time."""


@contextmanager
def workspace(folder: Path, memory: str | None, threads: int | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database on disk in ``folder/.work``, which is removed at the end.

    It keeps within ``memory`` (such as ``8GB``) and keeps rows in the order of their files. Tables hold what is larger than
    memory; other temporary files may be written to :func:`scratch`. Raises :class:`UserError` if ``memory`` is not an
    amount of memory or too small.
    """
    place = folder / ".work"
    place.mkdir(parents=True)
    memory = memory or f"{memory_bytes() // 2 // 2**20}MiB"
    try:
        with connect_on_disk(place, memory, threads) as connection:
            yield connection
    except duckdb.OutOfMemoryException as error:
        if "max_temp_directory_size" in str(error):
            raise  # the disk is full, which output_folder reports
        problem = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--memory {memory}: is too little for this data set; name more ({problem}).") from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def scratch(folder: Path, name: str) -> Path:
    """A path for a temporary file of the workspace in ``folder``."""
    return folder / ".work" / name


def stream(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[pa.RecordBatch]:
    """Rows of ``query``, a batch at a time.

    The query has its own cursor, so the connection may be used meanwhile.
    """
    with connection.cursor() as cursor:
        yield from cursor.sql(query).to_arrow_reader(BATCH_ROWS)


def one_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[int, ...]:
    """The single row of the result of ``query``, as integers; null is 0."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(int(value or 0) for value in row)


def insert_csv(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    paths: Sequence[Path],
    columns: Mapping[str, str],
    selected: str,
    *,
    options: str,
) -> None:
    """Append ``selected`` (SQL over ``columns``, name to type) of the CSV files ``paths`` to ``table``, in their order.

    The table is created if it does not exist. ``options`` are further options of DuckDB's ``read_csv``. Raises
    :class:`UserError` with the file, line and value if a value does not convert or a line has a wrong number of fields.
    """
    types = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
    for path in paths:
        source = (
            f"read_csv({file_literal(path)}, columns = {{{types}}}, auto_detect = false, strict_mode = true, "
            f"nullstr = '', {options})"
        )
        try:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} AS SELECT {selected} FROM {source} LIMIT 0")
            connection.execute(f"INSERT INTO {table} SELECT {selected} FROM {source}")
        except duckdb.Error as error:
            if isinstance(error, (duckdb.OutOfMemoryException, duckdb.IOException)) and not _about(path, error):
                raise  # not caused by the file
            problem = "; ".join(line.strip().rstrip(".") for line in str(error).splitlines()[:2] if line.strip())
            raise UserError(
                f"{path}: cannot be read as expected ({problem}); correct the line or download the file again."
            ) from None


def _about(path: Path, error: Exception) -> bool:
    """Return True if DuckDB's error names the file, possibly in the form of :func:`file_literal`."""
    return any(name in str(error) for name in (path.name, file_literal(path.name)[1:-1].rpartition("/")[2]))


def find_files(folder: Path, patterns: Sequence[str], what: str) -> list[Path]:
    """Files in ``folder`` that match one of ``patterns``, plain or with ``.gz``, by name; :class:`UserError` without any."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the one that holds {what}.")
    found = {
        path.name: path
        for pattern in patterns
        for ending in ("", ".gz")
        for path in folder.glob(pattern + ending)
        if path.is_file()
    }
    if not found:
        raise UserError(f"{folder}: lacks {what} ({' or '.join(patterns)}, plain or with .gz appended).")
    return [found[name] for name in sorted(found)]


class SplitWriter:
    """Writer of batches to ``folder/part-00000.parquet`` and on, in row groups and files of equal size except the last.

    Use it as a context manager. At most one row group and one batch are in memory. Columns in ``plain`` are written without
    a dictionary, which is smaller and faster if most values of a row group differ.
    """

    def __init__(
        self, folder: Path, schema: pa.Schema, *, plain: Sequence[str] = (), file_rows: int = FILE_ROWS
    ) -> None:
        self.folder, self.schema, self.file_rows = folder, schema, file_rows
        self.dictionaries = [name for name in schema.names if name not in plain]
        self.rows = 0
        """Number of rows written so far."""
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._written = 0
        self._writer: pq.ParquetWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the rows of ``batch``, whose columns are those of the schema, by name."""
        batch = batch.select(self.schema.names).cast(self.schema)
        self.rows += batch.num_rows
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        if self._waiting_rows >= ROW_GROUP_ROWS:
            table = pa.Table.from_batches(self._waiting, self.schema)
            whole = table.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
            for start in range(0, whole, ROW_GROUP_ROWS):
                self._write_group(table.slice(start, ROW_GROUP_ROWS))
            self._waiting = table.slice(whole).combine_chunks().to_batches()
            self._waiting_rows = table.num_rows - whole

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._waiting_rows:
            self._write_group(pa.Table.from_batches(self._waiting, self.schema))
        if self._writer is not None:
            self._writer.close()

    def _write_group(self, group: pa.Table) -> None:
        if self._writer is not None and self._written % self.file_rows == 0:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            path = self.folder / f"part-{self._written // self.file_rows:05d}.parquet"
            self._writer = pq.ParquetWriter(
                path,
                self.schema,
                version="2.6",
                compression="zstd",
                compression_level=3,
                use_dictionary=self.dictionaries,
                store_schema=False,
            )
        self._writer.write_table(group.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
        self._written += group.num_rows
