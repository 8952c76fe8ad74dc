"""Which row an unbounded id has: a set-associative map, as in a processor's cache, that forgets ids when it is full.

Rows 1 onwards are cut into buckets of up to :data:`WAYS` neighbouring rows. A hash of the id chooses its bucket, within which
it may have any row; when all are taken, one of the bucket's ids is evicted. So the map is one id per row and needs nothing
beside it, buckets can live on different processes, and what happens in a bucket does not depend on where it lives.
Row 0 is for id 0 (unknown) and for ids without a row of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.embeddings.unbounded.hashing import hashed

WAYS = 128
"""Most rows of a bucket. Part of what a configuration means: changing it changes which ids are evicted."""

CHUNK = 1 << 14
"""Ids that are looked for at a time: each is compared with all of its bucket."""

Eviction = Literal["lru", "lfu", "distance_lfu"]


@dataclass
class Newcomers:
    """Ids that were given rows, [n] int64 each."""

    rows: Tensor
    ids: Tensor
    evicted: Tensor
    """[n] int64: 1 where another id had the row until now."""


class RowSlots:
    """The part of the map that lives on one process: some buckets, hence a range of rows.

    Args:
        rows: rows of the whole table, at least 2.
        eviction: which id goes: of those in the bucket that are not in the batch, the one with the smallest step of last use
            (``lru``), number of batches it was in (``lfu``), or that number divided by the steps since its last use
            (``distance_lfu``); among equals the least recently used one, then that with the smallest row.
        part, parts: this process's number, and how many there are.
        device: where the map lives, and ids are.
    """

    def __init__(self, rows: int, eviction: Eviction, part: int, parts: int, device: torch.device) -> None:
        self.rows = rows
        self.eviction = eviction
        self.buckets = -(-(rows - 1) // WAYS)
        self._parts = parts
        self._widest = -(-(rows - 1) // self.buckets)
        self.first_row, self.stop_row = self.ranges()[part]
        size = self.stop_row - self.first_row
        self.ids = torch.zeros(size, dtype=torch.int64, device=device)
        """[R] int64: the id that has the row; 0 for rows that are free."""
        self.last_used = torch.zeros(size, dtype=torch.int32, device=device)
        """[R] int32: the step in which it was last used, counted from 1; 0 for rows that are free."""
        self.batches = torch.zeros(size, dtype=torch.int32, device=device)
        """[R] int32: the number of training batches that the id was in since it got the row."""
        self._before: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def ranges(self) -> list[tuple[int, int]]:
        """The rows, from and to, of every process."""
        firsts = [-(-part * self.buckets // self._parts) for part in range(self._parts + 1)]
        starts = [1 + first * (self.rows - 1) // self.buckets for first in firsts]
        starts[0] = 0
        return list(pairwise(starts))

    def owners(self, ids: Tensor) -> Tensor:
        """[N] the process on which the bucket of each id lives."""
        return hashed(ids, self.buckets) * self._parts // self.buckets

    def find(self, ids: Tensor) -> Tensor:
        """[N] int64 rows of the whole table of ``ids`` [N] int64, whose buckets live here; 0 for those without a row."""
        places = torch.cat([self._find(part, hashed(part, self.buckets)) for part in ids.split(CHUNK)])
        return torch.where(places < 0, 0, places + self.first_row)

    def admit(self, ids: Tensor, step: int) -> tuple[Tensor, Newcomers]:
        """Like :meth:`find`, but with rows for new ids as far as there are any, and note that all of them were used.

        Args:
            ids: [N] int64, each once, in ascending order; their buckets live here. The order decides who comes first.
            step: number of the step, from 1 on and never smaller than before. Rows that were used in this step are kept, so
                calling this again in the same step changes nothing.
        """
        buckets = hashed(ids, self.buckets)
        parts = zip(ids.split(CHUNK), buckets.split(CHUNK), strict=True)
        places = torch.cat([self._find(part, own) for part, own in parts])
        known = places[places >= 0]
        self._remember(known)
        self.batches[known] += (self.last_used[known] != step).int()
        self.last_used[known] = step
        new = ((places < 0) & (ids != 0)).nonzero().flatten()
        given = self._choose(buckets[new], step)
        new, given = new[given >= 0], given[given >= 0]
        places[new] = given
        newcomers = Newcomers(given + self.first_row, ids[new], (self.last_used[given] > 0).long())
        self._remember(given)
        self.ids[given], self.last_used[given], self.batches[given] = ids[new], step, 1
        return torch.where(places < 0, 0, places + self.first_row), newcomers

    def undo(self) -> None:
        """Take back everything since the last :meth:`keep`."""
        for places, ids, last_used, batches in reversed(self._before):
            self.ids[places], self.last_used[places], self.batches[places] = ids, last_used, batches
        self._before = []

    def keep(self) -> None:
        """What happened so far is not taken back any more."""
        self._before = []

    def _remember(self, places: Tensor) -> None:
        self._before.append((places, self.ids[places], self.last_used[places], self.batches[places]))

    def _slots(self, buckets: Tensor) -> tuple[Tensor, Tensor]:
        """[N, ways] places of all rows of each bucket, and which of them there are: some buckets have one less."""
        starts, stops = (1 + number * (self.rows - 1) // self.buckets for number in (buckets, buckets + 1))
        slots = (starts - self.first_row).unsqueeze(1) + torch.arange(self._widest, device=buckets.device)
        return slots.clamp(max=max(len(self.ids) - 1, 0)), slots < (stops - self.first_row).unsqueeze(1)

    def _find(self, ids: Tensor, buckets: Tensor) -> Tensor:
        """[N] places of ``ids`` in what is here, -1 for those without a row."""
        places = torch.full_like(ids, -1)
        width = min(self._widest, len(self.ids))
        # Windows onto neighbouring rows. One may reach a row into the next or the last bucket, where the id cannot be.
        windows = self.ids.unfold(0, width, 1)
        starts = (1 + buckets * (self.rows - 1) // self.buckets - self.first_row).clamp(max=max(len(windows) - 1, 0))
        number, column = (windows[starts] == ids.unsqueeze(1)).logical_and_((ids != 0).unsqueeze(1)).nonzero().unbind(1)
        places[number] = starts[number] + column
        return places

    def _choose(self, buckets: Tensor, step: int) -> Tensor:
        """[N] a place for each newcomer to ``buckets`` [N], all different; -1 where every row of its bucket is in the batch."""
        if not len(buckets):
            return buckets
        order = buckets.argsort(stable=True)
        crowded, which, counts = torch.unique_consecutive(buckets[order], return_inverse=True, return_counts=True)
        turn = torch.arange(len(buckets), device=buckets.device) - (counts.cumsum(0) - counts)[which]
        slots, there = self._slots(crowded)
        last_used = self.last_used[slots]
        open_ = there & (last_used != step)
        worth = torch.where(open_, torch.where(last_used > 0, self._worth(slots, step), -1.0), torch.inf)
        by_use = last_used.argsort(dim=1, stable=True)
        by_worth = by_use.gather(1, worth.gather(1, by_use).argsort(dim=1, stable=True))
        wanted = turn.clamp(max=self._widest - 1)
        slot = by_worth[which, wanted]
        granted = (turn < self._widest) & open_[which, slot]
        places = torch.empty_like(buckets)
        places[order] = torch.where(granted, slots[which, slot], -1)
        return places

    def _worth(self, slots: Tensor, step: int) -> Tensor:
        """Float64, like ``slots``: the id with the least goes first."""
        last_used, batches = self.last_used[slots].double(), self.batches[slots].double()
        if self.eviction == "lru":
            return last_used
        return batches if self.eviction == "lfu" else batches / (step - last_used)
