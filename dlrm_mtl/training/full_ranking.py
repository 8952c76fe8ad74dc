"""Evaluation that ranks all items for every user, for models that score a user and an item by a product."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.metrics import METRICS
from dlrm_mtl.metrics.ranking import NO_POSITIONS, Positions, positions
from dlrm_mtl.models.base import PairScores

USERS_AT_A_TIME = 256

Ids = NDArray[np.int64]


class FullRanking:
    """Ranking of all items, except id 0 and those in the user's training rows, for every user with targets in a split.

    All processes look up the vectors of users and items. The first one ranks them, and holds them all in memory.

    Args:
        ranker: the sharded model.
        path: path of the data set.
        rows: number of pairs that a process looks up at a time.
        device: device of the model.
    """

    def __init__(self, ranker: PairScores, path: str, rows: int, device: torch.device) -> None:
        self.ranker = ranker
        self.path = path
        self.rows = rows
        self.device = device

    def pairs(self, batch: Batch) -> Tensor:
        """User and item of every row, [2, B] int64; -1 if a row has none."""
        result = []
        for name in (self.ranker.user, self.ranker.item):
            ids = batch.sparse[name]
            first, lengths = ids.offsets()[:-1], ids.lengths()
            there = lengths > 0
            column = torch.full_like(first, -1, dtype=torch.int64)
            column[there] = ids.values()[first[there]]
            result.append(column)
        return torch.stack(result)

    @torch.no_grad()
    def metrics(self, pairs: Ids | None, observed: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
        """`TASK/METRIC` of every task. Every process must call this; the first one gets the result.

        Args:
            pairs: [2, N] of all rows of the split, on the first process.
            observed: mask [N] of the rows whose item is a target, by task.
        """
        users = [np.unique(pairs[0][pairs[0] >= 0]) if pairs is not None else np.empty(0, np.int64)]
        dist.broadcast_object_list(users)
        user_vectors, item_vectors, biases = self._vectors(users[0])
        if pairs is None:
            return {}
        result: dict[str, float] = {}
        for task, targets in observed.items():
            known = targets & (pairs >= 0).all(axis=0)
            found = self._rank(pairs[:, known], users[0], user_vectors, item_vectors, biases)
            result |= {
                f"{task}/{name}": metric.function(found)
                for name, metric in METRICS["ranking"].items()
                if metric.of_positions
            }
        return result

    def _vectors(self, users: Ids) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors [users, d], [items, d] and biases [items] on the first process, meaningless parts elsewhere."""
        world_size, rank = dist.get_world_size(), dist.get_rank()
        items = self.ranker.items
        count = max(len(users), items)
        chunk = min(self.rows, math.ceil(count / world_size))
        padded = math.ceil(count / (chunk * world_size)) * chunk * world_size
        ids = torch.zeros(2, padded, dtype=torch.int64)
        ids[0, : len(users)] = torch.from_numpy(users)
        ids[1, :items] = torch.arange(items)
        own = ids.view(2, world_size, -1)[:, rank].to(self.device)
        parts = [self.ranker.vectors(part[0], part[1]) for part in own.split(chunk, dim=1)]
        local = torch.cat([torch.cat(part, dim=1) for part in parts]).cpu()  # [padded / processes, 2 d + 1]
        gathered = [torch.empty_like(local) for _ in range(world_size)] if rank == 0 else None
        dist.gather(local, gathered)
        whole = torch.cat(gathered or [local])
        user, item, bias = whole.split([self.ranker.dim, self.ranker.dim, 1], dim=1)
        return user[: len(users)], item[:items], bias[:items, 0]

    def _rank(self, pairs: Ids, users: Ids, vectors: Tensor, items: Tensor, biases: Tensor) -> Positions:
        grouped = _Grouped(pairs)
        found = [NO_POSITIONS]
        present = grouped.users
        for start in range(0, len(present), USERS_AT_A_TIME):
            some = present[start : start + USERS_AT_A_TIME]
            rows = torch.from_numpy(np.searchsorted(users, some))
            scores = (vectors[rows] @ items.T + biases).double().numpy()
            scores[:, 0] = -np.inf
            for user, own in zip(some, scores, strict=True):
                targets = grouped.items(user)
                found.append(positions(int(user), own, targets[targets > 0], self._seen.items(user)))
        return Positions(
            *(np.concatenate([getattr(part, name) for part in found]) for name in ("user", "above", "tied"))
        )

    @cached_property
    def _seen(self) -> _Grouped:
        """Pairs in the training split."""
        dataset = open_dataset(self.path)
        columns = [dataset.spec.feature(name).source for name in (self.ranker.user, self.ranker.item)]
        parts = []
        for file in dataset.split("train").files:
            opened = file.open()
            for group in range(opened.num_row_groups):
                table = file.read_group(opened, group, columns)
                parts.append(np.stack([_integers(table[column]) for column in columns]))
        pairs = np.concatenate(parts, axis=1)
        return _Grouped(pairs[:, (pairs >= 0).all(axis=0) & (pairs[1] < self.ranker.items)])


class _Grouped:
    """Pairs [2, N] of users and items, grouped by user."""

    def __init__(self, pairs: Ids) -> None:
        order = np.argsort(pairs[0], kind="stable")
        self.users, self._starts = np.unique(pairs[0][order], return_index=True)
        self._ends = np.append(self._starts[1:], len(order))
        self._items = pairs[1][order]

    def items(self, user: int) -> Ids:
        place = int(np.searchsorted(self.users, user))
        if place == len(self.users) or self.users[place] != user:
            return np.empty(0, np.int64)
        return self._items[self._starts[place] : self._ends[place]]


def _integers(column: pa.ChunkedArray) -> Ids:
    """Ids [N] of a column, the first one of lists; -1 for a row without ids."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pa.chunked_array(pc.list_element(pc.list_slice(column, 0, 1, return_fixed_size_list=True), 0))
    ids: Ids = np.asarray(pc.fill_null(column, -1).cast(pa.int64()))
    return ids
