"""Resets of rows that change owners: weights, accumulators and moments, on every process that holds a part of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer
from dlrm_mtl.embeddings.unbounded.hashing import initial_rows


class RowResets:
    """Resets rows to the weights and state of a new id.

    The weights depend only on the seed, the table, the id and the column. They do not depend on the row, the sharding plan,
    or earlier steps.

    Args:
        optimizer: optimizer of the tables.
        stds: standard deviation of initial weights, by the table's own name.
        seed: seed of the run.
    """

    def __init__(self, optimizer: TwoPhaseOptimizer, stds: Mapping[str, float], seed: int) -> None:
        self._optimizer = optimizer
        self._stds = stds
        self._seed = seed
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def __call__(self, tables: Collection[str], rows: Tensor, ids: Tensor) -> None:
        """Reset ``rows`` [N] of ``tables``, by their own names, to those of new ``ids`` [N].

        Every process must pass the same.
        """
        touched = self._optimizer.touched
        for number, local in enumerate(self._optimizer.tables):
            for index, shard in enumerate(local.shards):
                name = shard.table.rpartition(".")[2]
                if name not in tables:
                    continue
                weights = local.group.table(index)
                here = (rows >= shard.row) & (rows < shard.row + len(weights))
                places = rows[here] - shard.row
                if not len(places):
                    continue
                if touched is not None:
                    touched.mark(number, index, places)
                fresh = initial_rows(
                    ids[here], f"{self._seed}/{name}", self._stds[name], shard.column, weights.shape[1]
                )
                self._set(weights, places, fresh.to(weights.dtype))
                for spec in self._optimizer.rule.states:
                    state = local.state_of(spec, index)
                    self._set(state, places, torch.full_like(state[places], spec.initial))

    def _set(self, tensor: Tensor, places: Tensor, values: Tensor) -> None:
        self._before.append((tensor, places, tensor[places]))
        tensor[places] = values

    @torch.no_grad()
    def undo(self) -> None:
        """Undo everything since the last :meth:`keep`."""
        for tensor, places, values in reversed(self._before):
            tensor[places] = values
        self._before = []

    def keep(self) -> None:
        """Make all changes so far permanent."""
        self._before = []
