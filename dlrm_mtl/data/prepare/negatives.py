"""Negative sampling for implicit feedback: items that a user had nothing to do with, as rows whose labels are 0.

Item i in 1..n is drawn with probability proportional to count_i ** exponent: exponent 0 is uniform, 1 follows popularity, 0.75
is word2vec's choice (Mikolov et al., NeurIPS 2013). Without ``known`` pairs the draws are independent; with them, the same
distribution restricted to the items that the user does not know. Items of one row may repeat. A draw is a pure function of the
seed, the row's key and the draw's number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.data.prepare.draws import uniform

Ids = NDArray[np.int64]

ATTEMPTS = 32
"""Draws that are thrown away for a known item before the unknown items of that user are listed, which always ends."""


class NegativeSampler:
    """Draws items 1 to n.

    Args:
        counts: popularity of items 1..n, [n], none negative.
        exponent: power of the popularity, at least 0.
        seed: other seeds give other draws.
    """

    def __init__(self, counts: NDArray[np.integer], exponent: float, seed: int) -> None:
        if len(counts) == 0:
            raise ValueError("counts is empty; there is no item to draw.")
        if exponent < 0:
            raise ValueError(f"exponent {exponent} is negative; 0 draws uniformly.")
        self.items, self.seed = len(counts), seed
        self._weights = counts.astype(np.float64) ** exponent
        self._cumulative = np.cumsum(self._weights)
        self._uniform = exponent == 0

    def sample(self, users: Ids, keys: Ids, each: int, known: Ids | None = None) -> Ids:
        """Draw ``each`` items for every row: int64 [rows, each].

        ``users`` [rows] and ``keys`` [rows] identify user and row, at least 0; equal (user, key) give equal draws. ``known``
        are the :meth:`codes` of known pairs, which are then never drawn, in any order. The item 0 stands for "none left":
        the user knows every item.
        """
        items = np.stack([self._draw(users, keys, slot, 0) for slot in range(each)], axis=1)
        if known is None:
            return items
        known = np.sort(known)
        redo = np.flatnonzero(self._is_known(users.repeat(each), items.ravel(), known))
        flat = items.reshape(-1)
        for attempt in range(1, ATTEMPTS):
            if len(redo) == 0:
                return items
            rows = redo // each
            flat[redo] = self._draw(users[rows], keys[rows], redo % each, attempt)
            redo = redo[self._is_known(users[rows], flat[redo], known)]
        for position in redo.tolist():
            flat[position] = self._draw_unknown(users[position // each], keys[position // each], position % each, known)
        return items

    def codes(self, users: Ids, items: Ids) -> Ids:
        """One number for every pair of a user and an item, 0 to n."""
        return users.astype(np.int64) * (self.items + 1) + items

    def _draw(self, users: Ids, keys: Ids, slot: Ids | int, attempt: int) -> Ids:
        share = uniform(self.seed, users, keys, slot, attempt)
        if self._uniform:  # what the search below finds, without searching
            return np.minimum((share * self.items).astype(np.int64), self.items - 1) + 1
        found = np.searchsorted(self._cumulative, share * self._cumulative[-1], side="right")
        return np.minimum(found, self.items - 1) + 1  # rounding may reach the total itself

    def _is_known(self, users: Ids, items: Ids, known: Ids) -> NDArray[np.bool_]:
        codes = self.codes(users, items)
        places = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        return known[places] == codes if len(known) else np.zeros(len(codes), dtype=np.bool_)

    def _draw_unknown(self, user: np.int64, key: np.int64, slot: int, known: Ids) -> int:
        first, last = np.searchsorted(known, [user * (self.items + 1) + 1, (user + 1) * (self.items + 1)])
        weights = self._weights.copy()
        weights[known[first:last] - user * (self.items + 1) - 1] = 0.0
        cumulative = np.cumsum(weights)
        if cumulative[-1] == 0.0:
            return 0
        share = float(uniform(self.seed, int(user), int(key), slot, ATTEMPTS)[0])
        place = int(np.searchsorted(cumulative, share * cumulative[-1], side="right"))
        return min(place, int(np.flatnonzero(weights)[-1])) + 1
