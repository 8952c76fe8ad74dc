"""Which users and items belong together: a set of pairs that is asked about millions of them a second."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.randomness import Bits, bits

Ids = NDArray[np.int64]

Number = TypeVar("Number", np.int64, np.uint64)

SALT = 0x70616972
"""Seed of the pairs' codes, so that they have nothing to do with anything that is drawn."""


def pair_codes(users: Ids, items: Ids) -> Bits:
    """One number of 64 bits for every pair of any ids: uint64 of the shape of ``users`` and ``items``."""
    return bits(SALT, users, items)


def distinct(values: NDArray[Number]) -> NDArray[Number]:
    """The values that occur, ascending: what np.unique finds, which since numpy 2.3 takes many times longer."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]


class KnownPairs:
    """A set of pairs (user, item), ids of any size, in 8 to 12 bytes each.

    It holds the pairs' codes. A pair of the set is always found; one that is not in it is taken for one of P pairs with
    probability P / 2^64. A look-up costs the same for any number of pairs: codes are as good as random, so their first bits
    tell where to look.
    """

    def __init__(self, codes: Bits) -> None:
        """``codes``: the :func:`pair_codes`, in any order, also more than once."""
        self.codes = distinct(codes)
        """[P] uint64, ascending."""
        size = max(len(self.codes).bit_length() - 2, 1)  # 2 to 4 codes for each value of the first bits
        self._shift = np.uint64(64 - size)
        edges = np.arange(2**size, dtype=np.uint64) << self._shift
        self._starts = np.append(np.searchsorted(self.codes, edges), len(self.codes))

    @classmethod
    def of(cls, users: Ids, items: Ids) -> KnownPairs:
        """The set of the pairs (users[i], items[i])."""
        return cls(pair_codes(users, items))

    def __len__(self) -> int:
        return len(self.codes)

    def __call__(self, users: Ids, items: Ids) -> NDArray[np.bool_]:
        """Whether the pairs (users[i], items[i]) are in the set, [N]."""
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
