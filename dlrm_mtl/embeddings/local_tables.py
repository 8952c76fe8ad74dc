"""Unsharded tables in plain PyTorch: serving's replacement of TorchRec's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.data.keyed_ids import KeyedIds, PlainFeatureIds
from dlrm_mtl.embeddings.tables import EmbeddingTable, TableSet


def local_tables(tables: TableSet, weights: Mapping[str, Tensor]) -> tuple[nn.Module | None, nn.Module | None]:
    """Lookups of pooled and of unpooled tables, for :meth:`~dlrm_mtl.models.feature_lookup.FeatureLookup.use`.

    Args:
        tables: tables of the model.
        weights: [rows, dim] float32 by name of the table; not copied, so they may be mapped from a file.
    """
    pooled = LocalBagCollection(tables.pooled, weights) if tables.pooled else None
    return pooled, LocalCollection(tables.unpooled, weights) if tables.unpooled else None


class LocalBagCollection(nn.Module):
    """Lookup that sums the rows of bags, like TorchRec's EmbeddingBagCollection.

    Rows of a bag are added in the order of its ids, as in FBGEMM's kernels. The weights are not parameters.
    """

    def __init__(self, tables: Sequence[EmbeddingTable], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        names = [name for table in tables for name in table.feature_names]
        self._weights = weights
        self._lookups = [
            (f"{name}@{table.name}" if names.count(name) > 1 else name, name, table.name)
            for table in tables
            for name in table.feature_names
        ]

    def forward(self, sparse: KeyedIds) -> NamedSums:
        """Look up all features."""
        sums = {}
        for key, name, table in self._lookups:
            ids = sparse[name]
            lengths = ids.lengths().long()
            sums[key] = F.embedding_bag(ids.values(), self._weights[table], lengths.cumsum(0) - lengths, mode="sum")
        return NamedSums(sums)


class NamedSums:
    """Sums [B, D] by name of the feature, with the method of TorchRec's KeyedTensor."""

    def __init__(self, sums: dict[str, Tensor]) -> None:
        self._sums = sums

    def to_dict(self) -> dict[str, Tensor]:
        """The sums by name."""
        return self._sums


class LocalCollection(nn.Module):
    """Lookup that returns a row for every id, like TorchRec's EmbeddingCollection. The weights are not parameters."""

    def __init__(self, tables: Sequence[EmbeddingTable], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._weights = weights
        self._table_of = {name: table.name for table in tables for name in table.feature_names}

    def forward(self, sparse: KeyedIds) -> dict[str, PlainFeatureIds]:
        """Vectors [N, D] of each feature's ids."""
        found = {}
        for name, table in self._table_of.items():
            ids = sparse[name]
            rows = torch.index_select(self._weights[table], 0, ids.values())
            found[name] = PlainFeatureIds(rows, ids.lengths())
        return found
