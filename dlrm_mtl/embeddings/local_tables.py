"""Tables held whole by one process, looked up with plain PyTorch: what serving has in the place of TorchRec's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.data.keyed_ids import KeyedIds, PlainFeatureIds
from dlrm_mtl.embeddings.tables import Table, TableSet


def local_tables(tables: TableSet, weights: Mapping[str, Tensor]) -> tuple[nn.Module | None, nn.Module | None]:
    """Lookups of pooled and of unpooled tables, for :meth:`~dlrm_mtl.models.feature_lookup.FeatureLookup.use`.

    Args:
        tables: of the model.
        weights: [rows, dim] float32 by name of the table; used as they are, so they may be mapped from a file.
    """
    pooled = LocalBagCollection(tables.pooled, weights) if tables.pooled else None
    return pooled, LocalCollection(tables.unpooled, weights) if tables.unpooled else None


class LocalBagCollection(nn.Module):
    """Sums the rows of bags, as TorchRec's EmbeddingBagCollection does.

    Rows of a bag are added in the order of its ids, as FBGEMM's kernels do. The weights are no parameters.
    """

    def __init__(self, tables: Sequence[Table], weights: Mapping[str, Tensor]) -> None:
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
    """[B, D] by name of the feature; TorchRec's KeyedTensor has the same method."""

    def __init__(self, sums: dict[str, Tensor]) -> None:
        self._sums = sums

    def to_dict(self) -> dict[str, Tensor]:
        """The sums by name."""
        return self._sums


class LocalCollection(nn.Module):
    """Gives a row for every id, as TorchRec's EmbeddingCollection does. The weights are no parameters."""

    def __init__(self, tables: Sequence[Table], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._weights = weights
        self._table_of = {name: table.name for table in tables for name in table.feature_names}

    def forward(self, sparse: KeyedIds) -> dict[str, PlainFeatureIds]:
        """The vectors [N, D] of each feature's ids."""
        found = {}
        for name, table in self._table_of.items():
            ids = sparse[name]
            rows = torch.index_select(self._weights[table], 0, ids.values())
            found[name] = PlainFeatureIds(rows, ids.lengths())
        return found
