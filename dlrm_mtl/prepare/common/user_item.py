"""From grouped interactions in DuckDB to rows on disk, as a stream: ids, labels, negatives, shuffling.

The table rows has columns user, item, part (0 training, 1 validation, 2 test), category, time, seen (bit b: behaviour b
occurred) and held (the pair is a held-out one).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dlrm_mtl.core.randomness import bits
from dlrm_mtl.core.sql import file_literal
from dlrm_mtl.data.negatives.drawn_rows import NegativeSampler
from dlrm_mtl.data.negatives.known_pairs import KnownPairs
from dlrm_mtl.prepare.common.duck import SPLITS, SplitWriter, one_row, scratch, stream
from dlrm_mtl.prepare.common.io import Progress

Ids = NDArray[np.int64]
Columns = dict[str, Ids]

MANY_VALUED = ["user", "item", "user_id", "item_id", "time"]
"""Columns that are smaller without a dictionary."""

NEGATIVES, ORDER = 1, 2
"""Numbers of the two uses of one seed."""


@dataclass(frozen=True)
class RowOptions:
    """Options of the rows."""

    behaviours: Sequence[int]
    """Bits of `seen` that become labels."""
    names: Sequence[str]
    """Names of the labels."""
    target: int
    """Bit of the behaviour whose pairs are held out."""
    masked: bool
    """True if a held-out pair may also be a training row: then each label counts in only one of the two."""
    negatives: tuple[int, int, int]
    """Number of sampled negatives per row of each part."""
    exponent: float
    known_negatives: bool
    seed: int
    categories: bool


def number(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Make the tables ids_user, ids_item, ids_category (value, id, count): 1 for the most frequent in training, ties by value.

    Returns the vocabulary sizes, with id 0 for values that do not occur in training.
    """
    sizes = {}
    for name in ("user", "item", "category"):
        connection.execute(
            f"""CREATE TABLE ids_{name} AS
            SELECT value, CAST(row_number() OVER (ORDER BY count DESC, value) AS INTEGER) AS id, count
            FROM (SELECT {name} AS value, count(*) AS count FROM rows WHERE part = 0 AND {name} IS NOT NULL GROUP BY {name})
            ORDER BY id"""
        )
        sizes[name] = one_row(connection, f"SELECT count(*) + 1 FROM ids_{name}")[0]
    # An item's category is the one in its rows; among several, the smallest, so that all rows agree.
    connection.execute(
        """CREATE TABLE items AS
        SELECT r.item, coalesce(any_value(i.id), 0) AS id, coalesce(any_value(c.id), 0) AS category
        FROM (SELECT item, min(category) AS category FROM rows GROUP BY item) r
        LEFT JOIN ids_item i ON i.value = r.item LEFT JOIN ids_category c ON c.value = r.category GROUP BY r.item"""
    )
    return sizes


class RowFactory:
    """Factory of output rows, with labels and negatives, from batches of whole users."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, options: RowOptions) -> None:
        self.options = options
        known = connection.execute(
            "SELECT i.count, i.value, t.category FROM ids_item i JOIN items t ON t.item = i.value ORDER BY i.id"
        ).fetchnumpy()
        self._raw_items = np.concatenate([[0], known["value"]]).astype(np.int64)  # [id]
        self._categories = np.concatenate([[0], known["category"]]).astype(np.int64)  # [id]
        self._sampler = NegativeSampler(known["count"], options.exponent, options.seed + NEGATIVES)
        self.exhausted = 0
        """Number of negatives that could not be drawn."""
        self.schema = pa.schema(
            [
                *(pa.field(name, pa.int32()) for name in ("user", "item")),
                *([pa.field("category", pa.int32())] if options.categories else []),
                *(pa.field(name, pa.int32()) for name in ("user_id", "item_id")),
                *([pa.field("time", pa.int32())] if options.categories else []),
                pa.field("sampled", pa.int8()),
                *(pa.field(name, pa.int8()) for name in options.names),
            ]
        )

    def make(self, rows: Columns, part: int) -> pa.RecordBatch:
        """Output rows of one part for the ``rows`` of whole users, each followed by its negatives.

        ``rows`` are those of :func:`_query`, of all parts: a negative must be unknown in every part. The result has the
        schema's columns and the column `order`: 64 random bits.
        """
        mine = {name: column[rows["part"] == part] for name, column in rows.items()}
        count, each = len(mine["user"]), self.options.negatives[part]
        key = bits(part, *(mine[name] for name in ("user", "raw_item", "time", "seen"))).view(np.int64)
        drawn = self._draw(rows, mine, key, each)  # [rows, each]
        # [rows, 1 + each]: the row, then its negatives
        width = 1 + each
        item = np.concatenate([mine["item"][:, None], drawn], axis=1)
        raw_item = np.concatenate([mine["raw_item"][:, None], self._raw_items[drawn]], axis=1)
        category = np.concatenate([mine["category"][:, None], self._categories[drawn]], axis=1)
        slot = np.broadcast_to(np.arange(width), (count, width))
        keep = (slot == 0) | (item > 0)
        self.exhausted += int((~keep).sum())
        columns: dict[str, pa.Array] = {
            "user": _int32(mine["id"].repeat(width).reshape(count, width)[keep]),
            "item": _int32(item[keep]),
            "category": _int32(category[keep]),
            "user_id": _int32(mine["user"].repeat(width).reshape(count, width)[keep]),
            "item_id": _int32(raw_item[keep]),
            "time": pa.array(
                mine["time"].repeat(width).reshape(count, width)[keep].astype(np.int32), mask=(slot > 0)[keep]
            ),
            "sampled": pa.array((slot > 0)[keep].astype(np.int8)),
        }
        for bit, name in zip(self.options.behaviours, self.options.names, strict=True):
            value = np.zeros((count, width), dtype=np.int8)
            value[:, 0] = (mine["seen"] >> bit) & 1
            null = np.zeros((count, width), dtype=np.bool_)
            if self.options.masked:  # a held-out pair's target counts in its part, other labels in training
                null[:, 0] = (mine["held"] > 0) & ((bit == self.options.target) == (part == 0))
            columns[name] = pa.array(value[keep], mask=null[keep])
        order = bits(self.options.seed + ORDER, key[:, None], np.arange(width)[None, :])
        columns["order"] = pa.array(order[keep])
        return pa.RecordBatch.from_pydict({name: columns[name] for name in [*self.schema.names, "order"]})

    def _draw(self, rows: Columns, mine: Columns, key: Ids, each: int) -> Ids:
        if each == 0 or len(key) == 0:
            return np.zeros((len(key), each), dtype=np.int64)
        known = None if self.options.known_negatives else KnownPairs.of(rows["user"], rows["item"])
        return self._sampler.sample(mine["user"], key, each, known)


def write_rows(
    connection: duckdb.DuckDBPyConnection, folder: Path, factory: RowFactory, progress: Progress
) -> list[int]:
    """Write all splits below ``folder`` and ``vocabularies.parquet`` (feature, id, value, count); returns rows per split.

    Training rows are shuffled, with a temporary file and a sort on disk; validation and test rows are ordered by user and
    item.
    """
    progress("joining", 0.6)
    total = max(one_row(connection, "SELECT count(*) FROM rows")[0], 1)
    unordered = scratch(folder, "train.parquet")
    done = 0
    ordered = factory.schema.append(pa.field("order", pa.uint64()))
    with (
        pq.ParquetWriter(unordered, ordered, compression="lz4", use_dictionary=False) as train,
        SplitWriter(folder / SPLITS[1], factory.schema, plain=MANY_VALUED) as validation,
        SplitWriter(folder / SPLITS[2], factory.schema, plain=MANY_VALUED) as test,
    ):
        for rows in _whole_users(stream(connection, _query())):
            done += len(rows["user"])
            progress("labels and negatives", 0.65 + 0.15 * done / total)
            train.write_batch(factory.make(rows, 0).cast(train.schema))
            validation.write(factory.make(rows, 1))
            test.write(factory.make(rows, 2))
    connection.execute("DROP TABLE rows")
    progress("shuffling", 0.8)
    source = f"read_parquet({file_literal(unordered)})"
    with SplitWriter(folder / SPLITS[0], factory.schema, plain=MANY_VALUED) as writer:
        for batch in stream(connection, f'SELECT * FROM {source} ORDER BY "order", user_id, item_id'):
            writer.write(batch)
    names = ["user", "item", *(["category"] if factory.options.categories else [])]
    _write_vocabularies(connection, folder / "vocabularies.parquet", names)
    return [writer.rows, validation.rows, test.rows]


def _query() -> str:
    return """SELECT r.user, coalesce(u.id, 0) AS id, i.id AS item, r.item AS raw_item, i.category, r.part, r.seen, r.held,
                     coalesce(r.time, 0) AS time
              FROM rows r LEFT JOIN ids_user u ON u.value = r.user JOIN items i ON i.item = r.item
              ORDER BY r.user, r.item, r.part, r.time, r.seen"""


def _whole_users(batches: Iterator[pa.RecordBatch]) -> Iterator[Columns]:
    """Regroup rows that are ordered by user so that no user is divided."""
    waiting: Columns | None = None
    for batch in batches:
        columns = {
            name: batch.column(name).cast(pa.int8() if name == "held" else pa.int64()).to_numpy(False).astype(np.int64)
            for name in batch.schema.names
        }
        if waiting is not None:
            columns = {name: np.concatenate([waiting[name], column]) for name, column in columns.items()}
        user = columns["user"]
        last = int(np.searchsorted(user, user[-1])) if len(user) else 0
        waiting = {name: column[last:] for name, column in columns.items()}
        if last:
            yield {name: column[:last] for name, column in columns.items()}
    if waiting is not None and len(waiting["user"]):
        yield waiting


def _write_vocabularies(connection: duckdb.DuckDBPyConnection, path: Path, names: Sequence[str]) -> None:
    query = " UNION ALL ".join(
        f"SELECT {place} AS place, '{name}' AS feature, id, CAST(value AS VARCHAR) AS value, count FROM ids_{name}"
        for place, name in enumerate(names)
    )
    schema = pa.schema([("feature", pa.string()), ("id", pa.int32()), ("value", pa.string()), ("count", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        for batch in stream(connection, f"SELECT feature, id, value, count FROM ({query}) ORDER BY place, id"):
            writer.write_batch(batch.cast(schema))


def _int32(values: Ids) -> pa.Array:
    return pa.array(values.astype(np.int32))
