"""Common tools of adapters: finding inputs, loading CSV files, vocabularies, reproducible Parquet, atomic output."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.sql import file_literal, quote

Progress = Callable[[str, float], None]
"""Called with the name of the current work and the fraction of the whole that is done, 0 to 1."""


def connect() -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB database with reproducible results: one thread, so that sums keep their order."""
    return duckdb.connect(config={"threads": 1, "preserve_insertion_order": True})


def connect_on_disk(work: Path, memory: str | None = None, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB database in the folder ``work``, so that tables need not fit into memory; rows keep their order.

    Args:
        work: folder of the database and of spilled data.
        memory: memory limit of DuckDB, such as 4GB; default: 80% of the machine's.
        threads: default: all cores.
    """
    if "?" in str(work):
        raise UserError(
            f"{work.parent}: DuckDB can keep no database below a folder with ? in its name; name another output."
        )
    config: dict[str, str | bool | int | float | list[str]] = {
        "temp_directory": str(work / "spilled"),
        "preserve_insertion_order": True,
    }
    if threads is not None:
        config["threads"] = threads
    if memory is not None:
        if not re.fullmatch(r"\s*\d+(\.\d+)?\s*[KMGT]i?B\s*", memory, re.IGNORECASE):
            raise UserError(f"--memory {memory}: this is no size; give one such as 500MB or 4GB.")
        config["memory_limit"] = memory
    return duckdb.connect(str(work / "work.duckdb"), config=config)


@contextmanager
def work_beside(
    output: Path, memory: str | None = None, threads: int | None = None
) -> Iterator[tuple[Path, duckdb.DuckDBPyConnection]]:
    """Open a folder for temporary files beside ``output``, which is removed at the end, and a database in it."""
    prefix = f".{plain_name(output)}.work-"
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=output.parent) as work,
        connect_on_disk(Path(work), memory, threads) as connection,
    ):
        yield Path(work), connection


def find_inputs(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Find each of ``names`` in ``folder``, plain or with ``.gz`` appended; raises :class:`UserError`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the folder that holds {', '.join(names)}.")
    found = {name: path for name in names for path in (folder / f"{name}.gz", folder / name) if path.is_file()}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{folder}: lacks {' and '.join(missing)} (plain or with .gz appended); download the data set into it."
        )
    return found


def plain_name(output: Path) -> str:
    """Name of ``output`` for a folder beside it: short, and without characters that DuckDB refuses in a database's path."""
    return output.name.replace("?", "_")[:40]


@contextmanager
def output_folder(output: Path) -> Iterator[Path]:
    """Open a temporary folder that becomes ``output`` when the block ends without an error, and is removed otherwise.

    Raises :class:`UserError` if ``output`` is not empty, cannot be written, or the disk becomes full.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: already exists and is not an empty folder; name another one or remove it.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{plain_name(output)}.partial-", dir=output.parent))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); name a folder you may write to.") from None
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, duckdb.OutOfMemoryException) and "max_temp_directory_size" not in str(error):
            problem = (str(error).splitlines() or [""])[0].rstrip(".")
            raise UserError(
                f"{output}: memory does not suffice ({problem}); allow more, or use fewer threads."
            ) from None
        if _is_full(error):
            problem = (str(error).splitlines() or [""])[0].rstrip(".")
            raise UserError(
                f"{output}: cannot be written to the end ({problem}); free space, or name another disk."
            ) from None
        raise


def load_csv(connection: duckdb.DuckDBPyConnection, table: str, path: Path, columns: Mapping[str, str]) -> None:
    """Create ``table`` with ``columns`` (name to SQL expression over the file's columns, all text).

    Raises :class:`UserError` if a column is missing or a value does not convert.
    """
    selected = ", ".join(f'{expression} AS "{name}"' for name, expression in columns.items())
    try:
        source = f"read_csv({file_literal(path)}, header = true, all_varchar = true, nullstr = '')"
        connection.execute(f"CREATE TABLE {table} AS SELECT {selected} FROM {source}")
    except duckdb.Error as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path}: cannot be read as expected ({problem}); download the file again.") from None


def vocabularies_table(connection: duckdb.DuckDBPyConnection, features: Sequence[str]) -> pa.Table:
    """The tables ``vocabulary_FEATURE`` as one: feature, id, value, count."""
    parts = [
        connection.sql(
            f"SELECT {quote(feature)} AS feature, id, value, count FROM vocabulary_{feature} ORDER BY id"
        ).to_arrow_table()
        for feature in features
    ]
    return pa.concat_tables(parts)


def write_parquet(table: pa.Table, path: Path, *, row_group_rows: int, many_valued: Sequence[str] = ()) -> None:
    """Write ``table`` with fixed settings, so that equal tables give equal bytes (for one version of pyarrow).

    Columns of integers (or lists of integers) in ``many_valued`` are byte-stream split instead of dictionary-encoded, which
    is smaller if most values differ, or if whole lists repeat from row to row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = {
        name: f"{name}.list.element" if pa.types.is_list(table.schema.field(name).type) else name
        for name in many_valued
    }
    pq.write_table(
        table.replace_schema_metadata(None),
        path,
        row_group_size=row_group_rows,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name in table.column_names if name not in leaves],
        column_encoding=dict.fromkeys(leaves.values(), "BYTE_STREAM_SPLIT"),
        write_statistics=True,
        store_schema=False,
    )


def _is_full(error: BaseException) -> bool:
    """Return True if ``error`` comes from a full disk, a quota or a limit on file sizes."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return isinstance(error, duckdb.Error) and any(text in str(error) for text in _FULL)


_FULL = ("No space left", "File too large", "quota exceeded", "Could not write", "max_temp_directory_size")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
