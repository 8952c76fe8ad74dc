"""Lookup of a batch's ids: one tensor with the vectors of all features, under any sharding plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dlrm_mtl.core.phases import phase
from dlrm_mtl.data.keyed_ids import FeatureIds, KeyedIds, like
from dlrm_mtl.embeddings.kernels.arrange import ColumnRange, arrange
from dlrm_mtl.embeddings.tables import TableSet, pooled_columns, torchrec_tables


class FeatureLookup(nn.Module):
    """Lookup of every feature of ``tables``: [B, W], the concatenated vectors of all features in the order of ``tables``.

    An empty bag gives zeros. A flattened feature takes as many vectors as its length, the most recent id first.

    This module states which tables there are. :meth:`use` gives it the modules that hold and look up their rows: TorchRec's
    collections, which are replaced by their sharded form when the model is wrapped, or local ones in serving.

    Args:
        tables: the tables.
    """

    def __init__(self, tables: TableSet) -> None:
        super().__init__()
        self.table_set = tables
        self.tables: nn.Module | None = None
        self.unpooled_tables: nn.Module | None = None
        self.unpooled_features = [name for table in tables.unpooled for name in table.feature_names]
        self.fields: list[int] = []
        """Width of every vector."""
        self.widths: list[int] = []
        """Width of each feature's result in each of its tables; W is their sum."""
        self.unbounded: Callable[[Any], Any] | None = None
        """Map of unbounded ids to rows, in a sharded model."""
        self.averaged: frozenset[str] = frozenset()
        """Names of features that :attr:`tables` average already, though they sum by their configuration."""
        self._divisors: _Divisors | None = None
        self._known: tuple[Any, ...] = ()
        """What :attr:`_parts` were found for."""
        self._parts: list[ColumnRange] = []
        self._keys: list[tuple[str, str, bool]] = []  # feature, its name in the output, True for a KeyedTensor
        keys = {(column.feature, column.table): column.key for column in pooled_columns(tables.pooled)}
        for table in tables.configs:
            for name in table.feature_names:
                vectors = tables.lengths.get(name, 1)
                self.fields += [table.embedding_dim] * vectors
                self.widths.append(table.embedding_dim * vectors)
                self._keys.append((name, keys.get((name, table.name), name), table.pooled))

    @property
    def names(self) -> list[str]:
        """Names of the features' results, in the order of :attr:`widths`; with the table if a feature has several."""
        return [key for _, key, _ in self._keys]

    def use(self, pooled: nn.Module | None, unpooled: nn.Module | None) -> None:
        """Look features up in these collections.

        Args:
            pooled: maps ids to an object with ``to_dict()``, sums [B, D] by name; None if no table is pooled.
            unpooled: maps ids to a mapping from names to the vectors of ids; None if all tables are pooled.
        """
        self.tables, self.unpooled_tables = pooled, unpooled

    def materialise(self, rows: int | None = None) -> None:
        """Allocate the tables on the CPU without sharding, each with only ``rows`` rows if given."""
        tables = self.table_set
        if rows is not None:
            tables = replace(tables, configs=[replace(table, num_embeddings=rows) for table in tables.configs])
        self.use(*torchrec_tables(tables, "cpu"))

    def forward(self, sparse: KeyedIds) -> Tensor:
        """Look up all features: [B, W]."""
        if self.unbounded is not None:
            sparse = self.unbounded(sparse)
        pooled, keyed = None, True
        if self.tables is not None:
            pooled = self.tables(sparse)
            with phase("output exchange"):  # reading an attribute waits for it
                keyed = hasattr(pooled, "length_per_key")
        rows: dict[str, FeatureIds] = {}
        if self.unpooled_tables is not None:
            rows = self.unpooled_tables(self.unpooled_ids(sparse))
        lengths = sparse.lengths().view(len(sparse.keys()), -1)
        # On a GPU, and for the few rows of a request, an operation costs more than another pass over the memory.
        if keyed and not lengths.is_cuda:
            return self._arranged(pooled, rows, sparse.keys(), lengths)
        sums = pooled.to_dict() if pooled is not None else {}
        columns = []
        for name, key, pools in self._keys:
            if name in self.table_set.lengths:
                columns.append(flatten(rows[key], self.table_set.lengths[name]))
            else:
                columns.append(sums[key] if pools else pool(rows[key]))
        return self.means(torch.cat(columns, dim=1), sparse)

    def _arranged(self, pooled: Any, rows: Mapping[str, FeatureIds], keys: list[str], lengths: Tensor) -> Tensor:
        """The features [B, W] in one pass over the results of the tables; none if these are in order and averaged already.

        Args:
            pooled: a KeyedTensor, whose order of columns depends on the sharding plan.
            rows: vectors of ids by name.
            keys: names of the features in ``lengths``.
            lengths: [F, B] numbers of ids.
        """
        sources = [] if pooled is None else [pooled.values()]
        found = [] if pooled is None else pooled.keys()
        for name, key, pools in self._keys:
            if name in self.table_set.lengths:
                sources.append(flatten(rows[key], self.table_set.lengths[name]))
            elif not pools:
                sources.append(pool(rows[key]))
        known = (found, keys, self.table_set.means, self.averaged)
        if self._known != known:
            starts = [] if pooled is None else pooled.offset_per_key()
            self._known, self._parts = known, self._find_parts(dict(zip(found, starts, strict=False)), keys)
        return arrange(sources, self._parts, lengths)

    def _find_parts(self, starts: Mapping[str, int], keys: list[str]) -> list[ColumnRange]:
        parts, sources = [], int(len(starts) > 0)
        for (name, key, pools), width in zip(self._keys, self.widths, strict=True):
            divided = name in self.table_set.means and key not in self.averaged
            counts = keys.index(name) if divided and name not in self.table_set.lengths else None
            if pools:
                parts.append(ColumnRange(0, starts[key], width, counts))
            else:
                parts.append(ColumnRange(sources, 0, width, counts))
                sources += 1
        return parts

    def unpooled_ids(self, sparse: KeyedIds) -> KeyedIds:
        """The part of ``sparse`` that is looked up in unpooled tables."""
        return most_recent(sparse, self.unpooled_features, self.table_set.lengths)

    def means(self, features: Tensor, sparse: KeyedIds) -> Tensor:
        """Divide the features [B, W] that are means by their numbers of ids in ``sparse``, all at once."""
        if not self.table_set.means - self.averaged:
            return features
        keys, device = sparse.keys(), features.device
        if self._divisors is None or self._divisors.keys != keys or self._divisors.rows.device != device:
            self._divisors = self._find_divisors(keys, device)
        rows, sums, widths = self._divisors.rows, self._divisors.sums, self._divisors.widths
        counts = sparse.lengths().view(len(keys), -1)[rows].clamp(min=1).masked_fill(sums, 1).T  # [B, F]
        if len(set(self.widths)) == 1:
            return (features.unflatten(1, (len(rows), -1)) / counts.unsqueeze(2)).flatten(1)
        return features / counts.repeat_interleave(widths, dim=1, output_size=features.shape[1])

    def _find_divisors(self, keys: list[str], device: torch.device) -> _Divisors:
        names, means = [name for name, _, _ in self._keys], self.table_set.means
        return _Divisors(
            keys,
            rows=torch.tensor([keys.index(name) for name in names], device=device),
            sums=torch.tensor([[name not in means] for name in names], device=device),
            widths=torch.tensor(self.widths, device=device),
        )


@dataclass(frozen=True)
class _Divisors:
    """Positions of the F features' numbers of ids in a batch with ``keys``."""

    keys: list[str]
    rows: Tensor
    """[F] int64: row of the feature in the lengths."""
    sums: Tensor
    """[F, 1] bool: True for a feature that is summed."""
    widths: Tensor
    """[F] int64: widths of the features."""


def most_recent(sparse: KeyedIds, keys: list[str], lengths: Mapping[str, int]) -> KeyedIds:
    """The features ``keys``; those in ``lengths`` are cut to the last ids of every row."""
    values, counts = [], []
    for key in keys:
        ids, count = sparse[key].values(), sparse[key].lengths()
        if key in lengths:
            ends = torch.repeat_interleave(count.cumsum(0), count, output_size=len(ids))
            ids = ids[ends - torch.arange(len(ids), device=ids.device) <= lengths[key]]
            count = count.clamp(max=lengths[key])
        values.append(ids)
        counts.append(count)
    return like(sparse, keys, values, counts)


def flatten(rows: FeatureIds, length: int) -> Tensor:
    """[B, length x D]: vectors [N, D] of each row's ids, the last one first, padded with zeros that have no gradient."""
    values, count = rows.values(), rows.lengths().long()
    slots = torch.arange(length, device=values.device)
    places = (count.cumsum(0) - 1).unsqueeze(1) - slots  # [B, length]
    places = torch.where(slots < count.unsqueeze(1), places, len(values))
    padded = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return padded.index_select(0, places.flatten()).view(len(count), -1)


def pool(rows: FeatureIds) -> Tensor:
    """[B, D]: sums of the vectors [N, D] of each row's ids."""
    return torch.segment_reduce(rows.values(), "sum", lengths=rows.lengths().long(), axis=0, unsafe=True, initial=0.0)
