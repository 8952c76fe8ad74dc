"""Samplers of items for the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.randomness import uniform
from dlrm_mtl.data.negatives.drawn_rows import ATTEMPTS, NegativeSampler
from dlrm_mtl.data.negatives.known_pairs import Ids, KnownPairs
from dlrm_mtl.data.negatives.statistics import is_id

NONE = -1
"""Result of a draw that finds nothing."""

LANE_BITS = 40
"""Number of bits of a row's number in its lane."""


@dataclass
class RowsToServe:
    """A process's rows of a global batch, [B]."""

    items: Ids
    """Items of the rows; :data:`~dlrm_mtl.data.decode.ABSENT` for a row without one."""
    users: Ids | None
    """Users of the rows, if their known items are avoided; :data:`~dlrm_mtl.data.decode.ABSENT` for a row without one."""
    first_lane: int
    """Lane of the first row; lanes are consecutive."""
    per_lane: int
    """Number of rows of a lane's slice."""
    step: int
    """Number of slices taken from every lane before, in this epoch."""
    epoch: int
    wanted: Ids
    """[m], positions 0 to B - 1 of the rows to draw items for, ascending."""

    def numbers(self, places: Ids) -> Ids:
        """Numbers of rows in this epoch, independent of process and batch: the lane, and the number in the lane."""
        lane, row = np.divmod(places, self.per_lane)
        return ((self.first_lane + lane) << LANE_BITS) + self.step * self.per_lane + row

    def places(self, numbers: Ids) -> Ids:
        """Inverse of :meth:`numbers`."""
        row = (numbers & ((1 << LANE_BITS) - 1)) - self.step * self.per_lane
        return ((numbers >> LANE_BITS) - self.first_lane) * self.per_lane + row


class Choice(Protocol):
    """A method of drawing items."""

    def draw(self, rows: RowsToServe, each: int) -> Ids:
        """[m, each] numbers of the draws for the ``wanted`` rows; :data:`NONE` if nothing is left."""
        ...


class FromSplit:
    """Sampler from the items of the training split, [n], with probability proportional to ``counts`` ** ``exponent``.

    A row's own item and the items that its user knows are excluded: the distribution is restricted to the others.
    """

    def __init__(
        self, items: Ids, counts: NDArray[np.integer], exponent: float, seed: int, known: KnownPairs | None
    ) -> None:
        self._items = np.concatenate([[0], items])  # the sampler counts from 1
        self._sampler = NegativeSampler(counts, exponent, seed) if len(items) else None
        self._known = known

    def draw(self, rows: RowsToServe, each: int) -> Ids:
        """See :class:`Choice`; numbers are those of the items, from 0."""
        if self._sampler is None or len(rows.wanted) == 0:
            return np.full((len(rows.wanted), each), NONE)

        def refused(numbers: Ids, items: Ids) -> NDArray[np.bool_]:
            return _refused(rows, self._known, rows.places(numbers), self._items[items])

        epochs = np.full(len(rows.wanted), rows.epoch)
        drawn = self._sampler.sample(rows.numbers(rows.wanted), epochs, each, refused)
        return drawn - 1  # the sampler's 0 means that nothing is left


class FromBatch:
    """Uniform sampler from the rows of the same lane's slice that have a different item than the row.

    Rows with an item that the row's user knows are excluded, too. A lane's slice, unlike a process's rows, is the same for
    any number of processes.
    """

    def __init__(self, seed: int, known: KnownPairs | None) -> None:
        self._seed = seed
        self._known = known

    def draw(self, rows: RowsToServe, each: int) -> Ids:
        """See :class:`Choice`; numbers are those of the process's rows, from 0."""
        slices = _Slices(rows)
        places = rows.wanted.repeat(each)
        numbers = rows.numbers(places)
        slots = np.tile(np.arange(each), len(rows.wanted))
        drawn = np.full(len(places), NONE)
        redo = np.flatnonzero(slices.others[places] > 0)
        for attempt in range(ATTEMPTS if self._known is not None else 1):
            share = uniform(self._seed, numbers[redo], rows.epoch, slots[redo], attempt)
            drawn[redo] = slices.other(places[redo], share)
            if self._known is None or len(redo) == 0:
                break
            redo = redo[_refused(rows, self._known, places[redo], rows.items[drawn[redo]])]
        else:
            shares = uniform(self._seed, numbers[redo], rows.epoch, slots[redo], ATTEMPTS)
            for position, share in zip(redo.tolist(), shares.tolist(), strict=True):
                drawn[position] = self._draw_unknown(rows, slices, places[position], share)
        return drawn.reshape(-1, each)

    def _draw_unknown(self, rows: RowsToServe, slices: _Slices, place: np.int64, share: float) -> int:
        candidates = slices.all_others(place)
        left = candidates[~_refused(rows, self._known, np.full(len(candidates), place), rows.items[candidates])]
        return int(left[int(share * len(left))]) if len(left) else NONE


class _Slices:
    """Rows of every lane's slice that have an item, sorted by item, so that the rows with a given item are contiguous."""

    def __init__(self, rows: RowsToServe) -> None:
        size = len(rows.items)
        names, rank = np.unique(rows.items, return_inverse=True)
        lane = np.arange(size) // max(rows.per_lane, 1)
        group = lane * len(names) + rank
        candidates = np.flatnonzero(is_id(rows.items))
        self._order = candidates[np.argsort(group[candidates], kind="stable")]
        sorted_groups = group[self._order]
        self._first = np.searchsorted(sorted_groups, lane * len(names))
        self._own = np.searchsorted(sorted_groups, group)
        self._own_stop = np.searchsorted(sorted_groups, group, side="right")
        self._stop = np.searchsorted(sorted_groups, (lane + 1) * len(names))
        self.others = (self._stop - self._first) - (self._own_stop - self._own)
        """[B], number of rows of the lane's slice that have another item."""

    def other(self, places: Ids, share: NDArray[np.float64]) -> Ids:
        """One of the other rows for each of the ``places``, chosen by numbers in [0, 1)."""
        number = self._first[places] + (share * self.others[places]).astype(np.int64)
        number += np.where(number >= self._own[places], self._own_stop[places] - self._own[places], 0)
        return self._order[number]

    def all_others(self, place: np.int64) -> Ids:
        """All other rows for one place."""
        before = self._order[self._first[place] : self._own[place]]
        return np.concatenate([before, self._order[self._own_stop[place] : self._stop[place]]])


def _refused(rows: RowsToServe, known: KnownPairs | None, places: Ids, items: Ids) -> NDArray[np.bool_]:
    """Mask of ``items`` that must not be drawn for the rows ``places`` of the process."""
    refused: NDArray[np.bool_] = items == rows.items[places]
    if known is not None:
        assert rows.users is not None
        users = rows.users[places]
        refused |= known(users, items) & is_id(users)
    return refused
