"""Unsharded tables in plain PyTorch: serving's replacement of TorchRec's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.data.keyed_ids import KeyedIds, PlainFeatureIds
from dlrm_mtl.embeddings.tables import EmbeddingTable, TableSet, pooled_columns


class LookupTable(Protocol):
    """A table whose rows can be looked up, whatever their format."""

    def sums(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Sums [B, dim] float32 of the rows of bags, added in the order of the ids; 0 for an empty bag.

        Args:
            ids: [N] int64, numbers of rows.
            offsets: [B] int64: first id of each bag.
        """
        ...

    def vectors(self, ids: Tensor) -> Tensor:
        """Rows [N, dim] float32 of ``ids`` [N] int64."""
        ...


class TensorTable:
    """A table in memory.

    Args:
        weights: [rows, dim] float32; not copied.
    """

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def sums(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Sums [B, dim] of the rows of bags."""
        return F.embedding_bag(ids, self._weights, offsets, mode="sum")

    def vectors(self, ids: Tensor) -> Tensor:
        """Rows [N, dim] of ids."""
        return torch.index_select(self._weights, 0, ids)


def local_tables(tables: TableSet, rows: Mapping[str, LookupTable]) -> tuple[nn.Module | None, nn.Module | None]:
    """Lookups of pooled and of unpooled tables, for :meth:`~dlrm_mtl.models.feature_lookup.FeatureLookup.use`.

    Args:
        tables: tables of the model.
        rows: the rows by name of the table.
    """
    pooled = LocalBagCollection(tables.pooled, rows) if tables.pooled else None
    return pooled, LocalCollection(tables.unpooled, rows) if tables.unpooled else None


class LocalBagCollection(nn.Module):
    """Lookup that sums the rows of bags, like TorchRec's EmbeddingBagCollection.

    Rows of a bag are added in the order of its ids, as in FBGEMM's kernels. The weights are not parameters.
    """

    def __init__(self, tables: Sequence[EmbeddingTable], rows: Mapping[str, LookupTable]) -> None:
        super().__init__()
        self._rows = rows
        self._lookups = pooled_columns(tables)

    def forward(self, sparse: KeyedIds) -> NamedSums:
        """Look up all features."""
        lengths = sparse.lengths().view(len(sparse.keys()), -1).long()
        starts = dict(zip(sparse.keys(), (lengths.cumsum(1) - lengths).unbind(), strict=True))
        return NamedSums(
            {key: self._rows[table].sums(sparse[name].values(), starts[name]) for key, name, table in self._lookups}
        )


class NamedSums:
    """Sums [B, D] by name of the feature, with the method of TorchRec's KeyedTensor."""

    def __init__(self, sums: dict[str, Tensor]) -> None:
        self._sums = sums

    def to_dict(self) -> dict[str, Tensor]:
        """The sums by name."""
        return self._sums


class LocalCollection(nn.Module):
    """Lookup that returns a row for every id, like TorchRec's EmbeddingCollection. The weights are not parameters."""

    def __init__(self, tables: Sequence[EmbeddingTable], rows: Mapping[str, LookupTable]) -> None:
        super().__init__()
        self._rows = rows
        self._table_of = {name: table.name for table in tables for name in table.feature_names}

    def forward(self, sparse: KeyedIds) -> dict[str, PlainFeatureIds]:
        """Vectors [N, D] of each feature's ids."""
        found = {}
        for name, table in self._table_of.items():
            ids = sparse[name]
            found[name] = PlainFeatureIds(self._rows[table].vectors(ids.values()), ids.lengths())
        return found
