"""Ids of categorical columns of a DuckDB table (64-bit integers or lists of them): by frequency in training, or hashed.

Ids are looked up in sorted arrays while rows stream by, so no join changes their order; memory is 12 bytes per distinct
value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from dlrm_mtl.core.sql import quote
from dlrm_mtl.prepare.common.duck import one_row, stream
from dlrm_mtl.prepare.common.ids import hash_sql

MinCount = Annotated[int, typer.Option(min=1, help="Values that training has fewer times get id 0, unknown.")]
HashSize = Annotated[
    int | None,
    typer.Option(min=2, help="Hash every category to so many ids instead of counting.", show_default=False),
]


@dataclass(frozen=True)
class Categorical:
    """A column that becomes ids."""

    name: str
    values: str
    """SQL of its value, a BIGINT or a list of them; null stays null."""
    text: Callable[[str], str] = "CAST({} AS VARCHAR)".format
    """Function from the SQL of a value to the SQL of its published form."""
    many: bool = False
    """True if values are lists."""


@dataclass(frozen=True)
class Numbering:
    """Assignment of ids to values."""

    min_count: int = 1
    """Smallest frequency in training for an id of its own; rarer values are unknown, id 0."""
    hash_size: int | None = None
    """Vocabulary size of hashed ids, which replace ids by frequency."""


class Encoder:
    """Map from values to ids, 0 for unknown values."""

    def __init__(self, values: np.ndarray, ids: np.ndarray) -> None:
        order = np.argsort(values)
        self._values, self._ids = values[order].astype(np.int64), ids[order].astype(np.int32)

    def encode(self, column: pa.Array) -> pa.Array:
        """Ids, int32 or lists of int32, of int64 values or lists of them; null stays null."""
        if pa.types.is_list(column.type):
            lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            ids = self._look_up(pc.fill_null(column.flatten(), 0).to_numpy(zero_copy_only=False))
            return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids), mask=pc.is_null(column))
        null = pc.is_null(column).to_numpy(zero_copy_only=False)
        return pa.array(self._look_up(pc.fill_null(column, 0).to_numpy(zero_copy_only=False)), mask=null)

    def _look_up(self, values: np.ndarray) -> np.ndarray:
        if len(self._values) == 0:
            return np.zeros(len(values), dtype=np.int32)
        places = np.minimum(np.searchsorted(self._values, values), len(self._values) - 1)
        return np.where(self._values[places] == values, self._ids[places], 0).astype(np.int32)


class Vocabularies:
    """Encoders of categorical columns, numbered on the training rows, and the writer of ``vocabularies.parquet``."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, numbering: Numbering) -> None:
        self.connection, self.numbering = connection, numbering
        self.sizes: dict[str, int] = {}
        """Vocabulary size by feature."""
        self._encoders: dict[str, Encoder] = {}
        self._texts: dict[str, str] = {}

    def add(self, column: Categorical, table: str, where: str) -> None:
        """Number the values of ``column`` in the rows of ``table`` ``where``: 1 for the most frequent, ties by value."""
        if self.numbering.hash_size is not None:
            self.sizes[column.name] = self.numbering.hash_size
            return
        name = f"ids_{len(self._texts)}"
        value = f"unnest({column.values})" if column.many else column.values
        self.connection.execute(
            f"""CREATE TABLE {name} AS
            SELECT value, CAST(row_number() OVER (ORDER BY count DESC, value) AS INTEGER) AS id, count
            FROM (SELECT value, count(*) AS count FROM (SELECT {value} AS value FROM {table} WHERE {where})
                  WHERE value IS NOT NULL GROUP BY value HAVING count(*) >= {self.numbering.min_count})
            ORDER BY id"""
        )
        found = self.connection.execute(f"SELECT value, id FROM {name}").fetchnumpy()
        self._encoders[column.name] = Encoder(found["value"], found["id"])
        place = f"{len(self._texts)} AS place, {quote(column.name)} AS feature"
        self._texts[column.name] = f"SELECT {place}, id, {column.text('value')} AS value, count FROM {name}"
        self.sizes[column.name] = one_row(self.connection, f"SELECT count(*) + 1 FROM {name}")[0]

    def select(self, column: Categorical) -> str:
        """SQL of the values of ``column`` for :meth:`encode`."""
        if self.numbering.hash_size is None:
            return f'{column.values} AS "{column.name}"'
        size = self.numbering.hash_size
        if column.many:
            hashed = hash_sql(column.text("value"), size, feature=column.name)
            return f'list_transform({column.values}, lambda value: CAST({hashed} AS INTEGER)) AS "{column.name}"'
        hashed = hash_sql(column.text(column.values), size, feature=column.name)
        return f'CASE WHEN {column.values} IS NOT NULL THEN {hashed} END AS "{column.name}"'

    def encode(self, name: str, values: pa.Array) -> pa.Array:
        """Ids of the feature ``name`` from the values of :meth:`select`."""
        return self._encoders[name].encode(values) if self.numbering.hash_size is None else values

    def write(self, path: Path) -> None:
        """Write feature, id, value (as published), count; nothing for hashed ids, which need no table."""
        if not self._texts:
            return
        schema = pa.schema(
            [("feature", pa.string()), ("id", pa.int32()), ("value", pa.string()), ("count", pa.int64())]
        )
        query = f"SELECT feature, id, value, count FROM ({' UNION ALL '.join(self._texts.values())}) ORDER BY place, id"
        with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
            for batch in stream(self.connection, query):
                writer.write_batch(batch.cast(schema))


def single(lists: pa.ListArray) -> pa.Array:
    """Convert lists of at most one id to ids; an empty list becomes null."""
    offsets = lists.offsets.to_numpy(zero_copy_only=False)
    empty = np.diff(offsets) == 0
    values = lists.values.to_numpy(zero_copy_only=False)
    ids = np.zeros(len(lists), dtype=np.int32)
    ids[~empty] = values[offsets[:-1][~empty]]
    return pa.array(ids, mask=empty)
