"""Vocabularies as mapped arrays: a value's id by a search for its hash, the same bytes for all processes of a machine.

Values are sorted by a hash of 64 bits, a polynomial of their bytes, for many values at once. A value that is found by its
hash is compared byte by byte, so that no other text gets its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

UNKNOWN = -1
"""Id of a value that the vocabulary lacks."""
Words = NDArray[np.uint64]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_FACTORS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
PARTS = ("hashes", "ids", "starts", "bytes")
"""Names of the tensors of a vocabulary."""


@dataclass(frozen=True)
class ValueIds:
    """Values and their ids, in the order of the hashes."""

    hashes: Words
    """[V], ascending."""
    ids: Ints
    """[V]"""
    starts: Ints
    """[V + 1] place of each value's bytes."""
    bytes: Bytes
    seed: int

    def find(self, values: pa.Array) -> Ints:
        """Ids of ``values``, [N] strings without nulls; :data:`UNKNOWN` for those that are not here."""
        bytes_, starts = _content(values)
        if not len(self.ids):
            return np.full(len(values), UNKNOWN, np.int64)
        wanted = hashes(bytes_, starts, self.seed)
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        lengths = np.diff(starts)
        found = (self.hashes[places] == wanted) & (self.starts[places + 1] - self.starts[places] == lengths)
        # Bytes of values with another length are not compared: their own stand in for them.
        compared = np.where(found, lengths, 0)
        own = _spread(starts[:-1], compared)
        stored = _spread(self.starts[places], compared)
        differs = np.concatenate([[0], np.cumsum(bytes_[own] != self.bytes[stored], dtype=np.int64)])
        ends = np.cumsum(compared)
        found &= differs[ends] == differs[ends - compared]
        return np.where(found, self.ids[places], UNKNOWN)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], owner: str, seed: int) -> ValueIds:
        """The vocabulary of ``owner`` from the tensors of :func:`arrange`."""
        hashes_, ids, starts, bytes_ = (tensors[f"{part}.{owner}"].numpy() for part in PARTS)
        return cls(hashes_.view(np.uint64), ids, starts, bytes_, seed)


def arrange(values: pa.Array, ids: Ints, owner: str) -> tuple[dict[str, Tensor], int]:
    """Tensors of the vocabulary of ``owner``, and the seed of its hash.

    Args:
        values: [V] strings, each once, without nulls.
        ids: [V]
        owner: feature that owns the vocabulary.
    """
    bytes_, starts = _content(values)
    seed = 0
    while len(np.unique(found := hashes(bytes_, starts, seed))) < len(found):
        seed += 1
    order = np.argsort(found, kind="stable")
    lengths = np.diff(starts)[order]
    places = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    arrays = (found[order].view(np.int64), ids[order], places, bytes_[_spread(starts[:-1][order], lengths)])
    return {f"{part}.{owner}": torch.from_numpy(array) for part, array in zip(PARTS, arrays, strict=True)}, seed


def hashes(bytes_: Bytes, starts: Ints, seed: int) -> Words:
    """[N] hashes of texts, whose bytes begin at ``starts`` [N + 1]."""
    lengths = np.diff(starts)
    longest = int(lengths.max(initial=0))
    powers = np.full(longest + 1, _FACTORS[0] + 2 * seed, np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)
    place = np.arange(starts[0], starts[-1]) - np.repeat(starts[:-1], lengths)
    terms = (bytes_[starts[0] : starts[-1]].astype(np.uint64) + np.uint64(1)) * powers[place]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    ends = starts - starts[0]
    found = sums[ends[1:]] - sums[ends[:-1]] + lengths.astype(np.uint64)
    for factor in _FACTORS[1:]:
        found = (found ^ (found >> np.uint64(30))) * np.uint64(factor)
    return found ^ (found >> np.uint64(31))


def _content(values: pa.Array) -> tuple[Bytes, Ints]:
    """Bytes of texts, and the places where they begin, [N + 1]."""
    if not len(values):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, content = values.buffers()
    starts = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    return np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8), starts


def _spread(starts: Ints, lengths: Ints) -> Ints:
    """Places of all bytes of texts that begin at ``starts`` and have ``lengths``."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
