"""Synthetic data: the source of rows and their true scores.

Everything is a function of the seed and a counter: row group ``g`` of stream ``s`` has its own Philox generator, and the
effect of an id is a hash of (seed, table, id). So the rows do not depend on the drawing process, and no table of effects is
kept, for any vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.randomness import STEP, finish
from dlrm_mtl.prepare.synthetic.zipf import Zipf

Floats = NDArray[np.float64]

PARTS = ("main effects", "interactions", "dense")
"""Parts whose sum is a score."""

_EFFECTS_STREAM = 1 << 20
_DENSE_STREAM = _EFFECTS_STREAM + 1
_PER_HASH = 4  # effects of 16 bits each in a 64-bit hash


@dataclass(frozen=True)
class Bag:
    """Number of ids of a row: ``low`` to ``high``, all equally likely, or Poisson with mean ``poisson``."""

    low: int = 1
    high: int = 1
    poisson: float | None = None

    @property
    def single(self) -> bool:
        """True if every row has exactly one id."""
        return self.poisson is None and self.low == self.high == 1

    def sample(self, generator: np.random.Generator, rows: int) -> NDArray[np.int64]:
        """Draw the numbers of ids [rows]."""
        if self.poisson is not None:
            return generator.poisson(self.poisson, rows)
        return generator.integers(self.low, self.high, rows, endpoint=True)


@dataclass(frozen=True)
class SyntheticRows:
    """Drawn rows, before labels."""

    lengths: list[NDArray[np.int64] | None]
    """Number of ids per row [rows] of each table; None if every row has one."""
    ids: list[NDArray[np.int64]]
    """All ids of each table, row after row."""
    dense: NDArray[np.float32]  # [rows, dense]
    parts: Floats
    """Parts of the tasks' raw scores [parts, rows, tasks], in the order of ``PARTS``."""
    uniform: Floats
    """Numbers in [0, 1) that determine the labels [rows, tasks]."""


@dataclass(frozen=True)
class World:
    """The distribution of features, and the effects of features on every task's raw score.

    An id has one effect per task, uniform with variance 1 and independent of all others. A bag's effect is the mean over
    its ids, 0 if it is empty, as a table with mean pooling can represent. Main effects are the sum of the bags' effects;
    interactions the sum of the products of the bags' effects of neighbouring tables (0 and 1, 2 and 3, ...); the dense part
    is linear in the dense features, which are standard normal.
    """

    seed: int
    vocabularies: tuple[int, ...]
    """Vocabulary size of each table, with id 0 (unknown), which is never drawn."""
    bags: tuple[Bag, ...]
    exponent: float
    dense: int
    tasks: int

    def draw(self, stream: int, group: int, rows: int) -> SyntheticRows:
        """Draw ``rows`` rows, the same for the same (seed, stream, group)."""
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(stream, group))))
        lengths: list[NDArray[np.int64] | None] = []
        ids, bag_effects = [], []
        for table, (size, bag) in enumerate(zip(self.vocabularies, self.bags, strict=True)):
            counts = None if bag.single else bag.sample(generator, rows)
            drawn = Zipf(size - 1, self.exponent).sample(generator, rows if counts is None else int(counts.sum()))
            lengths.append(counts)
            ids.append(drawn)
            bag_effects.append(_bag_means(self.effects(table, drawn), counts))
        dense = generator.standard_normal((rows, self.dense), dtype=np.float32)
        parts = np.zeros((len(PARTS), rows, self.tasks))
        for effect in bag_effects:
            parts[0] += effect
        for left, right in zip(bag_effects[0::2], bag_effects[1::2], strict=False):
            parts[1] += left * right
        parts[2] = dense.astype(np.float64) @ self._dense_weights
        return SyntheticRows(lengths, ids, dense, parts, generator.random((rows, self.tasks)))

    def effects(self, table: int, ids: NDArray[np.int64]) -> Floats:
        """Effects of ``ids`` [n] of one table on the tasks' raw scores [n, tasks], each in (-sqrt(3), sqrt(3))."""
        hashes = -(-self.tasks // _PER_HASH)
        salts = np.random.SeedSequence(self.seed, spawn_key=(_EFFECTS_STREAM, table)).generate_state(hashes, np.uint64)
        bits = np.empty((len(ids), hashes), dtype=np.uint64)
        for position, salt in enumerate(salts):
            bits[:, position] = finish((ids.astype(np.uint64) + salt) * STEP)
        levels = bits.astype("<u8", copy=False).view("<u2")[:, : self.tasks]
        return (levels.astype(np.float64) + 0.5) * (2 * 3**0.5 / 65536) - 3**0.5

    @cached_property
    def _dense_weights(self) -> Floats:  # [dense, tasks]
        sequence = np.random.SeedSequence(self.seed, spawn_key=(_DENSE_STREAM,))
        return np.random.Generator(np.random.Philox(sequence)).standard_normal((self.dense, self.tasks))


def _bag_means(effects: Floats, counts: NDArray[np.int64] | None) -> Floats:
    """Means over bags [rows, tasks] of effects [ids, tasks]; 0 for empty bags."""
    if counts is None:
        return effects
    means = np.zeros((len(counts), effects.shape[1]))
    filled = np.flatnonzero(counts)
    if len(filled):
        starts = np.cumsum(counts[filled]) - counts[filled]
        means[filled] = np.add.reduceat(effects, starts, axis=0) / counts[filled, None]
    return means
