"""Writing tables for other programs, a piece at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrm_mtl.checkpoint.format import header
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.vocabularies import Values
from dlrm_mtl.serve.table_files.source import SourceTable, TableSource, table_source
from dlrm_mtl.storage.output import output_file

PIECE = 32 << 20
"""Number of bytes of vectors in memory at a time; a row group of a Parquet file has as many."""
TENSORS_FILE = "tables.safetensors"
DESCRIPTION_FILE = "tables.json"

logger = logging.getLogger(__name__)


def export_tables(
    place: str | Path,
    output: str | Path,
    format: str = "parquet",
    names: Sequence[str] = (),
    checkpoint: str | None = None,
    data: str | None = None,
    plugins: Sequence[str] = (),
) -> list[str]:
    """Write tables of a bundle or a run as files; a piece of a table is in memory at a time.

    ``parquet``: ``NAME.parquet`` for each table, with the columns ``id`` (int64), ``value`` (text, the value behind the id, if
    its vocabulary is known) and ``vector`` (a list of fixed size of float32). ``safetensors``: ``tables.safetensors`` with a
    tensor [rows, dim] float32 by the name of each table, and for unbounded ids ``NAME.ids`` [rows] int64. Last, in both cases,
    ``tables.json``: the run, the step, and every table's file, shape and features.

    Args:
        place: folder of a bundle, or of a run (path or URI).
        output: folder to write, path or URI.
        format: ``parquet`` or ``safetensors``.
        names: tables to write; default: all.
        checkpoint: ``best``, ``latest`` or ``step_N`` of a run.
        data: data set whose vocabularies give the values; default: a run's own, if it is unchanged.
        plugins: modules that register parts of a bundle's model.

    Returns:
        The names of the tables.

    Raises:
        UserError: there is no such bundle, run or table, or the output cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: there is no such format; {suggest(format, FORMATS)}.")
    with table_source(place, checkpoint, data, plugins) as source:
        known = {table.name: table for table in source.tables}
        for name in names:
            if name not in known:
                raise UserError(f"--table {name}: there is no such table; {suggest(name, known)}.")
        chosen = [known[name] for name in dict.fromkeys(names)] if names else source.tables
        folder = str(output).rstrip("/")
        if "://" not in folder:
            _make(Path(folder))
        described = FORMATS[format](source, chosen, folder)
        content = {"name": source.name, "step": source.step, "tables": described}
        with output_file(f"{folder}/{DESCRIPTION_FILE}") as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
        logger.info("%s: %s of step %d, tables %s", output, source.name, source.step, ", ".join(described))
        return list(described)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another place with --output.") from None


def _write_parquet(source: TableSource, tables: Sequence[SourceTable], folder: str) -> dict[str, Any]:
    """One file for each table."""
    described = {}
    for table in tables:
        name = f"{quote(table.name, safe='')}.parquet"
        values = source.values(table)
        texts = None if values is None else _by_row(values, table.rows)
        columns = {"id": pa.int64()} | ({"value": pa.string()} if texts is not None else {})
        schema = pa.schema({**columns, "vector": pa.list_(pa.float32(), table.dim)})
        rows = 0
        with (
            output_file(f"{folder}/{name}") as file,
            pq.ParquetWriter(file, schema, use_dictionary=False, compression="zstd") as writer,
        ):
            for first, stop in _pieces(table):
                batch = _batch(table, schema, texts, first, stop)
                rows += batch.num_rows
                writer.write_batch(batch, row_group_size=max(1, batch.num_rows))
        described[table.name] = _about(table, name, rows) | {"values": texts is not None}
    return described


def _batch(table: SourceTable, schema: pa.Schema, texts: pa.Array | None, first: int, stop: int) -> pa.RecordBatch:
    """The rows from ``first`` to ``stop`` that have an id."""
    vectors = table.read(first, stop).contiguous().numpy()
    ids = np.arange(first, stop) if table.ids is None else table.ids(first, stop).numpy()
    taken = (ids != 0) | (np.arange(first, stop) == 0)  # row 0 stands for unknown ids, a free row has no id
    flat = pa.array(vectors[taken].reshape(-1))
    arrays = [pa.array(ids[taken])]
    if texts is not None:
        arrays.append(texts.slice(first, stop - first).filter(pa.array(taken)))
    return pa.record_batch([*arrays, pa.FixedSizeListArray.from_arrays(flat, table.dim)], schema=schema)


def _by_row(values: Values, rows: int) -> pa.Array:
    """[rows] texts by row; null for a row without a value."""
    places = np.full(rows, -1, np.int64)
    places[values.ids] = np.arange(len(values.ids))
    return pc.take(values.values, pa.array(places, mask=places < 0))


def _write_tensors(source: TableSource, tables: Sequence[SourceTable], folder: str) -> dict[str, Any]:
    """One file with all tables."""
    entries: dict[str, tuple[str, Iterable[int], int]] = {}
    for table in tables:
        entries[table.name] = ("F32", (table.rows, table.dim), 4 * table.rows * table.dim)
        if table.ids is not None:
            entries[f"{table.name}.ids"] = ("I64", (table.rows,), 8 * table.rows)
    with output_file(f"{folder}/{TENSORS_FILE}") as file:
        file.write(header(entries, source.name, source.step))
        for table in tables:
            for first, stop in _pieces(table):
                file.write(table.read(first, stop).contiguous().numpy().tobytes())
            if table.ids is not None:
                for first, stop in _pieces(table):
                    file.write(table.ids(first, stop).contiguous().numpy().tobytes())
    return {table.name: _about(table, TENSORS_FILE, table.rows) for table in tables}


def _pieces(table: SourceTable) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE // (4 * table.dim))
    for first in range(0, table.rows, step):
        yield first, min(first + step, table.rows)


def _about(table: SourceTable, file: str, rows: int) -> dict[str, Any]:
    unbounded = table.ids is not None
    return {"file": file, "rows": rows, "dim": table.dim, "features": table.features, "unbounded": unbounded}


FORMATS: dict[str, Callable[[TableSource, Sequence[SourceTable], str], dict[str, Any]]] = {
    "parquet": _write_parquet,
    "safetensors": _write_tensors,
}
"""Writers by the name of the format."""
