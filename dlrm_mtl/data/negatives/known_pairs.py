"""Known pairs of users and items: a set for millions of look-ups a second."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.randomness import Bits, bits

Ids = NDArray[np.int64]

Number = TypeVar("Number", np.int64, np.uint64)

SALT = 0x70616972
"""Seed of the codes of pairs, which makes them independent of all draws."""


def pair_codes(users: Ids, items: Ids) -> Bits:
    """Codes of pairs of any ids, 64 bits each: uint64 of the shape of ``users`` and ``items``."""
    return bits(SALT, users, items)


def distinct(values: NDArray[Number]) -> NDArray[Number]:
    """Distinct values, ascending: np.unique, which is many times slower since numpy 2.3."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]


class KnownPairs:
    """A set of pairs (user, item), ids of any size, in 8 to 12 bytes each.

    It holds the codes of P pairs. A pair of the set is always found; any other pair is wrongly found with probability P /
    2^64. The cost of a look-up does not depend on the number of pairs: codes are as good as random, so their first bits
    give the position.
    """

    def __init__(self, codes: Bits) -> None:
        """Make the set from :func:`pair_codes`, in any order, repetitions allowed."""
        self.codes = distinct(codes)
        """[P] uint64, ascending."""
        size = max(len(self.codes).bit_length() - 2, 1)  # 2 to 4 codes for each value of the first bits
        self._shift = np.uint64(64 - size)
        edges = np.arange(2**size, dtype=np.uint64) << self._shift
        self._starts = np.append(np.searchsorted(self.codes, edges), len(self.codes))

    @classmethod
    def of(cls, users: Ids, items: Ids) -> KnownPairs:
        """Set of the pairs (users[i], items[i])."""
        return cls(pair_codes(users, items))

    def __len__(self) -> int:
        return len(self.codes)

    def __call__(self, users: Ids, items: Ids) -> NDArray[np.bool_]:
        """[N], True for pairs (users[i], items[i]) in the set."""
        codes = pair_codes(users, items)
        place = (codes >> self._shift).astype(np.int64)
        first, stop = self._starts[place], self._starts[place + 1]
        found = np.zeros(len(codes), dtype=np.bool_)
        left = np.flatnonzero(first < stop)
        while len(left):
            here = self.codes[first[left]] == codes[left]
            found[left] = here
            first[left] += 1
            left = left[~here & (first[left] < stop[left])]
        return found
