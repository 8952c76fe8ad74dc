"""Rows of a global step: each process's part of them, and how many rows of tables each process reads and updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.keyed_ids import KeyedIds
from dlrm_mtl.embeddings.rules.base import StateSpec
from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.models.feature_lookup import most_recent

Integers = NDArray[np.int64]

FLOAT = 4
"""Bytes of a weight and of a number of state."""


def part_of(batch: Batch, rank: int, world_size: int) -> Batch:
    """Rows of ``batch`` that process ``rank`` trains on: the rank-th of ``world_size`` equal parts."""
    rows = batch.size // world_size
    own = slice(rank * rows, (rank + 1) * rows)
    sparse = batch.sparse
    features, offsets = len(sparse.keys()), sparse.offsets()
    firsts = torch.arange(features) * batch.size + own.start
    spans = zip(offsets[firsts].tolist(), offsets[firsts + rows].tolist(), strict=True)
    values = torch.cat([sparse.values()[first:last] for first, last in spans])
    lengths = sparse.lengths().view(features, -1)[:, own].reshape(-1)
    part = KeyedJaggedTensor(sparse.keys(), values, lengths=lengths, stride=rows)
    return Batch(part, batch.dense[own], batch.labels[own], batch.weights[own])


def empty(batch: Batch, rows: int) -> Batch:
    """A batch like ``batch`` of so many rows without ids and of weight 0."""
    sparse = batch.sparse
    lengths = sparse.lengths().new_zeros(len(sparse.keys()) * rows)
    nothing = KeyedJaggedTensor(sparse.keys(), sparse.values()[:0], lengths=lengths, stride=rows)
    dense, labels, weights = (
        part.new_zeros(rows, part.shape[1]) for part in (batch.dense, batch.labels, batch.weights)
    )
    return Batch(nothing, dense, labels, weights)


@dataclass(frozen=True)
class RowCounts:
    """Rows of tables that each process reads and updates in a step, each [world size] int64."""

    read: Integers
    """Rows that lookups read; an id of several rows of the batch counts each time."""
    bytes_read: Integers
    """Bytes of these rows, as wide as the process's shards."""
    updated: Integers
    """Distinct rows that the update touches; the columns of a row on one process count once for each shard."""
    bytes_updated: Integers
    """Bytes of weights and state of these rows."""


def count_rows(
    sparse: Sequence[KeyedIds],
    tables: TableSet,
    plan: Sequence[Mapping[str, Any]],
    states: Sequence[StateSpec],
    world: int,
) -> RowCounts:
    """Count the rows of a step from the ids of its global batch, by the placement of the tables.

    Args:
        sparse: ids of the global batch, of each micro-batch.
        tables: the tables.
        plan: their shards, as :func:`~dlrm_mtl.embeddings.torchrec.plan.describe_plan` gives them.
        states: state of the table optimizer.
        world: number of processes.
    """
    counts = RowCounts(*(np.zeros(world, dtype=np.int64) for _ in range(4)))
    unpooled = [name for table in tables.unpooled for name in table.feature_names]
    cut = [most_recent(ids, unpooled, tables.lengths) for ids in sparse] if unpooled else []
    per_row = max(1, sum(state.per == "row" for state in states))
    per_element = 1 + sum(state.per == "element" for state in states)
    for table, placed in zip(tables.configs, plan, strict=True):
        source = sparse if table.pooled else cut
        features = [ids[name] for ids in source for name in table.feature_names]
        ids = np.sort(torch.cat([feature.values() for feature in features]).numpy())
        distinct = np.unique(ids)
        if not placed["shards"]:  # every process has the whole table, and looks its own rows up
            read = np.sum([_by_process(feature.lengths(), world) for feature in features], axis=0)
            _add(
                counts, np.arange(world), read, np.full(world, len(distinct)), table.embedding_dim, per_row, per_element
            )
            continue
        ranks = np.array([shard["rank"] for shard in placed["shards"]])
        first = np.array([shard["offsets"][0] for shard in placed["shards"]])
        rows, columns = np.array([shard["sizes"] for shard in placed["shards"]]).T
        spans = [np.searchsorted(of, first + rows) - np.searchsorted(of, first) for of in (ids, distinct)]
        _add(counts, ranks, spans[0], spans[1], columns, per_row, per_element)
    return counts


def _add(
    counts: RowCounts,
    ranks: Integers,
    read: Integers,
    updated: Integers,
    columns: int | Integers,
    per_row: int,
    per_element: int,
) -> None:
    np.add.at(counts.read, ranks, read)
    np.add.at(counts.bytes_read, ranks, read * columns * FLOAT)
    np.add.at(counts.updated, ranks, updated)
    np.add.at(counts.bytes_updated, ranks, updated * (columns * per_element + per_row) * FLOAT)


def _by_process(lengths: Tensor, world: int) -> Integers:
    """Sums [world] of the lengths [B] of each process's rows."""
    sums: Integers = lengths.view(world, -1).long().sum(dim=1).numpy()
    return sums
