"""Lookup of several tables in one call: a request's rows are few, and each call costs more than its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dlrm_mtl.data.join_rows import Joined
from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.serve.tables import ServedTable


class JointLookup:
    """Sums or means of features whose tables lie in one file, float32 and of one width, as rows of a single table.

    The rows of a bag are added as by :class:`~dlrm_mtl.embeddings.local_tables.LocalBagCollection`, so the bits are the same.

    Args:
        tables: tables of a model.
        keys: names of the features in the input, in order.
        rows: rows by name of the table.
    """

    def __init__(self, tables: TableSet, keys: Sequence[str], rows: Mapping[str, ServedTable]) -> None:
        looked_up = Counter(name for table in tables.configs for name in table.feature_names)
        parts = {
            name: part
            for table in tables.configs
            if table.pooled and (part := rows[table.name].plain) is not None
            for name in table.feature_names
            if name in keys and looked_up[name] == 1
        }
        widths = Counter(part.shape[1] for part in parts.values())
        self.width = widths.most_common(1)[0][0] if widths else 1
        size = self.width * 4
        first = min((part.data_ptr() for part in parts.values()), default=0)
        places = {
            name: (part.data_ptr() - first) // size
            for name, part in parts.items()
            if part.shape[1] == self.width and (part.data_ptr() - first) % size == 0
        }
        self.names = [name for name in keys if name in places]
        """Features that are looked up here."""
        if not self.names:
            return
        last = max(places[name] + len(parts[name]) for name in self.names)
        start = min(parts.values(), key=lambda part: part.data_ptr())
        self._table = start.as_strided((last, self.width), (self.width, 1))
        self._rows = torch.tensor([places[name] for name in self.names])
        self._keys = torch.tensor([list(keys).index(name) for name in self.names])
        self._whole = len(self.names) == len(keys)
        owner = {name: table.name for table in tables.configs for name in table.feature_names}
        self._owners = [rows[owner[name]] for name in self.names]
        self._means = torch.tensor([[name in tables.means] for name in self.names])

    def __call__(self, joined: Joined, keys: int) -> Tensor:
        """Vectors [B, width * features] of the features in :attr:`names`.

        Args:
            joined: ids of all features.
            keys: number of all features.
        """
        lengths = joined.lengths.view(keys, -1).long()
        values = joined.values
        if not self._whole:
            by_key = values.split(lengths.sum(dim=1).tolist())
            values, lengths = torch.cat([by_key[key] for key in self._keys.tolist()]), lengths[self._keys]
        counted = lengths.sum(dim=1)
        for table, own in zip(self._owners, values.split(counted.tolist()), strict=True):
            table.check_rows(own)
        ids = values + torch.repeat_interleave(self._rows, counted, output_size=len(values))
        counts = lengths.flatten()
        sums = torch.embedding_bag(self._table, ids, counts.cumsum(0) - counts)[0]  # [features * B, width]
        divisors = lengths.clamp(min=1).masked_fill(~self._means, 1).unsqueeze(2)
        vectors = sums.view(len(self.names), -1, self.width) / divisors
        return vectors.transpose(0, 1).flatten(1)
