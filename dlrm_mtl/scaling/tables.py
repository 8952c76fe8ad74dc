"""Tables as load: what a batch looks up in each of them, and how the lookups spread over its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.embeddings.rules.base import StateSpec

Array = NDArray[np.float64]
Sizes = int | NDArray[np.int64]

PARTS_OF_ROWS = 1024
"""Largest number of equal parts of a table's rows for which popularity is kept apart."""

FLOAT = 4
"""Bytes of a weight or of a number of state."""


@dataclass(frozen=True)
class Popularity:
    """Distribution of lookups over the rows of a table.

    Rows of the same expected frequency form a level. An id that a batch looks up is drawn from this distribution,
    independently of the others.
    """

    rows: int
    frequencies: Array
    """[L] probability that a lookup reads a given row of the level."""
    counts: Array
    """[L] number of rows of the level."""
    reads: Array
    """[K + 1] part of the lookups that read rows before each of K equal parts of the rows, from 0 to 1."""
    active: Array
    """[K] number of rows in each part that may be looked up at all."""

    @staticmethod
    def uniform(rows: int) -> Popularity:
        """Every row equally often: the assumption without data, with the largest number of distinct rows."""
        parts = min(rows, PARTS_OF_ROWS)
        edges = np.linspace(0.0, 1.0, parts + 1)
        return Popularity(rows, np.array([1.0 / rows]), np.array([float(rows)]), edges, np.diff(edges) * rows)

    @staticmethod
    def of_sample(ids: NDArray[np.int64], rows: int, ordered: bool = True) -> Popularity:
        """Popularity by a sample of lookups.

        Rows that the sample does not contain share the part of lookups that Good and Turing's estimate gives them: the part
        of the sample whose id occurs once (Good, "The population frequencies of species", 1953).

        Args:
            ids: the sampled ids, in [0, rows) if they are ``ordered``.
            rows: number of rows of the table.
            ordered: True if an id is its row; False for unbounded ids, which may lie in any row.
        """
        if not len(ids):
            return Popularity.uniform(rows)
        distinct, times = np.unique(ids, return_counts=True)
        seen = min(len(distinct), rows)
        unseen = (float((times == 1).sum()) / len(ids)) if rows > seen else 0.0
        levels, counts = np.unique(times, return_counts=True)
        frequencies = levels / len(ids) * (1.0 - unseen)
        numbers = counts.astype(np.float64)
        if rows > seen and unseen > 0:
            frequencies, numbers = np.append(frequencies, unseen / (rows - seen)), np.append(numbers, rows - seen)
        parts = min(rows, PARTS_OF_ROWS)
        edges = np.linspace(0.0, 1.0, parts + 1)
        even = np.diff(edges) * rows
        if not ordered:
            return Popularity(rows, frequencies, numbers, edges, even)
        reads = np.append(0.0, np.cumsum(np.histogram(distinct, bins=edges * rows, weights=times)[0]))
        active = even if unseen > 0 else np.histogram(distinct, bins=edges * rows)[0].astype(np.float64)
        return Popularity(rows, frequencies, numbers, reads / reads[-1], active)

    def distinct(self, lookups: float) -> float:
        """Expected number of distinct rows among so many lookups."""
        return float((self.counts * -np.expm1(-lookups * self.frequencies)).sum())

    def between(self, lookups: float, edges: NDArray[np.int64]) -> tuple[Array, Array]:
        """Lookups and expected distinct rows in each range of rows between ``edges`` [N + 1]; two arrays [N]."""
        positions = np.linspace(0.0, self.rows, len(self.reads))
        reads = np.interp(edges, positions, self.reads) * lookups
        shares = np.diff(self.reads)
        touched = self.active * -np.expm1(-lookups * shares / np.maximum(self.active, 1e-30))
        whole = touched.sum()
        scale = self.distinct(lookups) / whole if whole > 0 else 0.0
        distinct = np.interp(edges, positions, np.append(0.0, np.cumsum(touched))) * scale
        return np.diff(reads), np.minimum(np.diff(distinct), np.diff(edges))


@dataclass(frozen=True)
class TableLoad:
    """One table, and what a row of the batch looks up in it."""

    name: str
    rows: int
    dim: int
    features: int
    """Number of features that are looked up in it."""
    ids: float
    """Mean number of ids of one row of the batch, of all its features together."""
    popularity: Popularity
    pooled: bool = True
    """True if the lookup sums the rows of a bag, False if it returns a row for every id."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the whole table's weights."""
        return self.rows * self.dim * FLOAT


@dataclass(frozen=True)
class StateSize:
    """Numbers that a table optimizer keeps."""

    per_row: int
    per_element: int

    @staticmethod
    def of(states: Sequence[StateSpec]) -> StateSize:
        """The size of the state of a rule."""
        return StateSize(sum(state.per == "row" for state in states), sum(state.per == "element" for state in states))

    def held(self, rows: Sizes, columns: Sizes, kept: int = 1) -> Array:
        """Bytes of state of shards; FBGEMM has memory for ``kept`` numbers per row, whether the rule uses it or not."""
        numbers = max(kept, self.per_row) + self.per_element * np.asarray(columns, dtype=np.float64)
        return numbers * rows * FLOAT

    def row_bytes(self, columns: Sizes) -> Array:
        """Bytes of weights and state of one row of shards so many columns wide."""
        return (np.asarray(columns, dtype=np.float64) + self.per_row + self.per_element * columns) * FLOAT


@dataclass(frozen=True)
class DenseLoad:
    """The part of a model outside the tables."""

    parameter_bytes: int
    """Bytes of the weights, which are also those of the gradients that processes sum."""
    flops: int
    """Floating-point operations of matrix products for one row of the batch, forward and backward."""
    held_bytes: int
    """Bytes of weights, gradients and optimizer state."""
    tasks: int = 1


@dataclass(frozen=True)
class Load:
    """Everything that a step does, before it is distributed."""

    tables: Sequence[TableLoad]
    dense: DenseLoad
    state: StateSize
    rows: int
    """Rows of a global batch."""
    micro_batches: int = 1
    row_reductions: int = 1
    """Numbers of each touched row that column shards exchange in a step: its square sum, and a factor of its own if any."""
    by_name: dict[str, TableLoad] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Index the tables by name."""
        object.__setattr__(self, "by_name", {table.name: table for table in self.tables})

    @property
    def row_width(self) -> float:
        """Numbers that are looked up for a row of the batch: those of sums, or of all ids of unpooled features."""
        return sum((table.features if table.pooled else table.ids) * table.dim for table in self.tables)
