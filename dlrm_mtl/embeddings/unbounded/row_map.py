"""The map from unbounded ids to rows: set-associative, like a processor's cache, with eviction when it is full.

Rows 1 onwards are cut into buckets of up to :data:`WAYS` neighbouring rows. A hash of the id chooses its bucket, in which
it may have any row. When all rows are taken, one of the bucket's ids is evicted. So the map needs only one id per row,
buckets can be placed on different processes, and a bucket's behaviour does not depend on its process. Row 0 is for id 0
(unknown) and for ids without a row of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.embeddings.unbounded.hashing import hashed

WAYS = 128
"""Largest number of rows of a bucket. Changing it changes which ids are evicted."""

CHUNK = 1 << 14
"""Number of ids looked up at a time: each is compared with its whole bucket."""

Eviction = Literal["lru", "lfu", "distance_lfu"]


@dataclass
class Newcomers:
    """Ids that got rows, [n] int64 each."""

    rows: Tensor
    ids: Tensor
    evicted: Tensor
    """[n] int64: 1 if another id had the row before."""


class RowSlots:
    """The part of the map on one process: some buckets, hence a range of rows.

    Args:
        rows: rows of the whole table, at least 2.
        eviction: rule for the id to evict, among the bucket's ids that are not in the batch: the smallest step of last use
            (``lru``), number of batches with the id (``lfu``), or that number divided by the steps since its last use
            (``distance_lfu``). Ties go to the least recently used id, then to the smallest row.
        part, parts: number of this process, and number of processes.
        device: device of the map and the ids.
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
        """[R] int64: id that has the row; 0 for a free row."""
        self.last_used = torch.zeros(size, dtype=torch.int32, device=device)
        """[R] int32: step of the row's last use, counted from 1; 0 for a free row, and 0 or less for use in an earlier run."""
        self.batches = torch.zeros(size, dtype=torch.int32, device=device)
        """[R] int32: number of training batches with the id since it got the row."""
        self.changed: Tensor | None = None
        """[R] bool: True for rows that may have changed their id since :meth:`mark_changed`; None before."""
        self._before: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def mark_changed(self) -> None:
        """Mark rows whose ids change from now on, and none before."""
        if self.changed is None:
            self.changed = torch.zeros_like(self.ids, dtype=torch.bool)
        else:
            self.changed.zero_()

    def ranges(self) -> list[tuple[int, int]]:
        """First row and end of the rows of every process."""
        firsts = [-(-part * self.buckets // self._parts) for part in range(self._parts + 1)]
        starts = [1 + first * (self.rows - 1) // self.buckets for first in firsts]
        starts[0] = 0
        return list(pairwise(starts))

    def owners(self, ids: Tensor) -> Tensor:
        """[N] process of each id's bucket."""
        return hashed(ids, self.buckets) * self._parts // self.buckets

    def find(self, ids: Tensor) -> Tensor:
        """[N] int64 rows in the whole table of ``ids`` [N] int64, whose buckets are here; 0 for ids without a row."""
        places = torch.cat([self._find(part, hashed(part, self.buckets)) for part in ids.split(CHUNK)])
        return torch.where(places < 0, 0, places + self.first_row)

    def admit(self, ids: Tensor, step: int) -> tuple[Tensor, Newcomers]:
        """Find the rows of ``ids`` like :meth:`find`, give rows to new ids if possible, and record the use of all.

        Args:
            ids: [N] int64, each once, ascending; their buckets are here. The order decides which id is first.
            step: number of the step, from 1 and never smaller than before. Rows used in this step are kept, so calling this
                again in the same step changes nothing.
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
        newcomers = Newcomers(given + self.first_row, ids[new], (self.ids[given] != 0).long())
        self._remember(given)
        if self.changed is not None:
            self.changed[given] = True
        self.ids[given], self.last_used[given], self.batches[given] = ids[new], step, 1
        return torch.where(places < 0, 0, places + self.first_row), newcomers

    def undo(self) -> None:
        """Undo everything since the last :meth:`keep`."""
        for places, ids, last_used, batches in reversed(self._before):
            self.ids[places], self.last_used[places], self.batches[places] = ids, last_used, batches
        self._before = []

    def keep(self) -> None:
        """Make all changes so far permanent."""
        self._before = []

    def _remember(self, places: Tensor) -> None:
        self._before.append((places, self.ids[places], self.last_used[places], self.batches[places]))

    def _slots(self, buckets: Tensor) -> tuple[Tensor, Tensor]:
        """[N, ways] positions of all rows of each bucket, and a mask of those that exist: some buckets have one less."""
        starts, stops = (1 + number * (self.rows - 1) // self.buckets for number in (buckets, buckets + 1))
        slots = (starts - self.first_row).unsqueeze(1) + torch.arange(self._widest, device=buckets.device)
        return slots.clamp(max=max(len(self.ids) - 1, 0)), slots < (stops - self.first_row).unsqueeze(1)

    def _find(self, ids: Tensor, buckets: Tensor) -> Tensor:
        """[N] local positions of ``ids``, -1 for ids without a row."""
        places = torch.full_like(ids, -1)
        width = min(self._widest, len(self.ids))
        # Windows onto neighbouring rows. One may reach a row into the next or the last bucket, which cannot hold the id.
        windows = self.ids.unfold(0, width, 1)
        starts = (1 + buckets * (self.rows - 1) // self.buckets - self.first_row).clamp(max=max(len(windows) - 1, 0))
        number, column = (windows[starts] == ids.unsqueeze(1)).logical_and_((ids != 0).unsqueeze(1)).nonzero().unbind(1)
        places[number] = starts[number] + column
        return places

    def _choose(self, buckets: Tensor, step: int) -> Tensor:
        """[N] a position for each newcomer to ``buckets`` [N], all different; -1 if every row of its bucket is in the batch."""
        if not len(buckets):
            return buckets
        order = buckets.argsort(stable=True)
        crowded, which, counts = torch.unique_consecutive(buckets[order], return_inverse=True, return_counts=True)
        turn = torch.arange(len(buckets), device=buckets.device) - (counts.cumsum(0) - counts)[which]
        slots, there = self._slots(crowded)
        last_used = self.last_used[slots]
        open_ = there & (last_used != step)
        worth = torch.where(open_, torch.where(self.ids[slots] != 0, self._worth(slots, step), -torch.inf), torch.inf)
        by_use = last_used.argsort(dim=1, stable=True)
        by_worth = by_use.gather(1, worth.gather(1, by_use).argsort(dim=1, stable=True))
        wanted = turn.clamp(max=self._widest - 1)
        slot = by_worth[which, wanted]
        granted = (turn < self._widest) & open_[which, slot]
        places = torch.empty_like(buckets)
        places[order] = torch.where(granted, slots[which, slot], -1)
        return places

    def _worth(self, slots: Tensor, step: int) -> Tensor:
        """Worth of the ids, float64, of the shape of ``slots``: the smallest is evicted first."""
        last_used, batches = self.last_used[slots].double(), self.batches[slots].double()
        if self.eviction == "lru":
            return last_used
        return batches if self.eviction == "lfu" else batches / (step - last_used)
