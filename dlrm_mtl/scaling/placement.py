"""Placement of tables: the shards of every table and their processes, as TorchRec cuts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.embeddings.torchrec.lookups import ROWS_SPLIT
from dlrm_mtl.embeddings.torchrec.plan import COLUMN_SPLITTING


@dataclass(frozen=True)
class Placed:
    """A table's sharding type, and its shards in TorchRec's order; a replicated table has none."""

    type: str
    ranks: tuple[int, ...] = ()
    """[S] process of each shard."""
    offsets: tuple[tuple[int, int], ...] = ()
    """[S] first row and first column of each shard."""
    sizes: tuple[tuple[int, int], ...] = ()
    """[S] rows and columns of each shard."""


Placement = Mapping[str, Placed]
"""The shards of every table, by its name."""


def row_edges(rows: int, shards: int) -> NDArray[np.int64]:
    """[shards + 1] first row of each part of equally cut rows, and their end; the last parts may be smaller or empty."""
    block = -(-rows // shards)
    return np.minimum(np.arange(shards + 1, dtype=np.int64) * block, rows)


def cut(kind: str, rows: int, columns: int, ranks: Sequence[int], column_shards: int, per_host: int) -> Placed:
    """The shards of a table of ``rows`` x ``columns``.

    Args:
        kind: the sharding type.
        rows: rows of the table.
        columns: columns of the table.
        ranks: process of each shard; for grid_shard and table_row_wise, the first process of each column shard's host.
        column_shards: number of parts of the columns, for types that cut them.
        per_host: processes of a host.
    """
    if kind == "data_parallel":
        return Placed(kind)
    widths = columns // column_shards if kind in COLUMN_SPLITTING else columns
    starts = range(0, columns, widths)
    if kind in ROWS_SPLIT:
        edges = row_edges(rows, len(ranks) if kind == "row_wise" else per_host)
        blocks = [(int(edges[i]), int(edges[i + 1] - edges[i])) for i in range(len(edges) - 1)]
        if kind == "row_wise":
            members = [list(ranks)]
        else:
            members = [list(range(first, first + per_host)) for first in ranks]
    else:
        blocks = [(0, rows)]
        members = [[rank] for rank in ranks]
    return Placed(
        kind,
        tuple(rank for group in members for rank in group),
        tuple((first, start) for start in starts for first, _ in blocks),
        tuple((size, widths) for _ in starts for _, size in blocks),
    )


def placement_of(described: Sequence[Mapping[str, Any]]) -> dict[str, Placed]:
    """The placement in the ``tables`` of a run's ``plan.json``."""
    return {
        table["table"]: Placed(
            table["type"],
            tuple(shard["rank"] for shard in table["shards"]),
            tuple((shard["offsets"][0], shard["offsets"][1]) for shard in table["shards"]),
            tuple((shard["sizes"][0], shard["sizes"][1]) for shard in table["shards"]),
        )
        for table in described
    }
