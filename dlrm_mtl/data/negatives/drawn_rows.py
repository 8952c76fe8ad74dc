"""Negative sampling for implicit feedback: rows with label 0 and items that the user did not interact with.

Item i in 1..n is drawn with probability proportional to count_i ** exponent: exponent 0 is uniform, 1 follows popularity,
0.75 is word2vec's choice (Mikolov et al., NeurIPS 2013). Without ``known`` pairs the draws are independent. With them, the
same distribution is restricted to the items that the user does not know. Items of one row may repeat. A draw is a pure
function of the seed, the row's key and the draw's number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.randomness import uniform

Ids = NDArray[np.int64]
Known = Callable[[Ids, Ids], NDArray[np.bool_]]
"""Predicate of pairs (users[i], items[i]) that must not be drawn, such as
:class:`~dlrm_mtl.data.negatives.known_pairs.KnownPairs`."""

ATTEMPTS = 32
"""Draws that may hit a known item before the unknown items of that user are enumerated, which always ends."""


class NegativeSampler:
    """Sampler of items 1 to n.

    Args:
        counts: popularity of items 1..n, [n], none negative.
        exponent: power of the popularity, at least 0.
        seed: seed of the draws.
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

    def sample(self, users: Ids, keys: Ids, each: int, known: Known | None = None) -> Ids:
        """Draw ``each`` items for every row: int64 [rows, each].

        ``users`` [rows] and ``keys`` [rows] identify user and row; equal (user, key) give equal draws. ``known`` pairs are
        never drawn. The item 0 means that the user knows every item.
        """
        items = np.stack([self._draw(users, keys, slot, 0) for slot in range(each)], axis=1)
        if known is None:
            return items
        flat = items.reshape(-1)
        redo = np.flatnonzero(known(users.repeat(each), flat))
        for attempt in range(1, ATTEMPTS):
            if len(redo) == 0:
                return items
            rows = redo // each
            flat[redo] = self._draw(users[rows], keys[rows], redo % each, attempt)
            redo = redo[known(users[rows], flat[redo])]
        for position in redo.tolist():
            flat[position] = self._draw_unknown(users[position // each], keys[position // each], position % each, known)
        return items

    def _draw(self, users: Ids, keys: Ids, slot: Ids | int, attempt: int) -> Ids:
        share = uniform(self.seed, users, keys, slot, attempt)
        if self._uniform:  # same result as the search below
            return np.minimum((share * self.items).astype(np.int64), self.items - 1) + 1
        share *= self._cumulative[-1]
        order = np.argsort(share)  # ascending look-ups are several times faster in a long list
        found = np.empty(len(share), dtype=np.int64)
        found[order] = np.searchsorted(self._cumulative, share[order], side="right")
        return np.minimum(found, self.items - 1) + 1  # rounding may reach the total

    def _draw_unknown(self, user: np.int64, key: np.int64, slot: int, known: Known) -> int:
        items = np.arange(1, self.items + 1)
        weights = np.where(known(np.full(self.items, user), items), 0.0, self._weights)
        cumulative = np.cumsum(weights)
        if cumulative[-1] == 0.0:
            return 0
        share = float(uniform(self.seed, int(user), int(key), slot, ATTEMPTS)[0])
        place = int(np.searchsorted(cumulative, share * cumulative[-1], side="right"))
        return min(place, int(np.flatnonzero(weights)[-1])) + 1
