"""Popularity of rows, against drawn lookups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_mtl.scaling.tables import Popularity


def zipf(rows: int, count: int, rng: np.random.Generator) -> np.ndarray:
    weights = 1.0 / np.arange(1, rows + 1)
    return rng.choice(rows, count, p=weights / weights.sum())


@pytest.mark.parametrize("ordered", [True, False])
def test_distinct_rows_of_other_batches(ordered: bool) -> None:
    rng = np.random.default_rng(1)
    rows = 5000
    place = np.arange(rows) if ordered else rng.permutation(rows)
    sample = Popularity.of_sample(place[zipf(rows, 20_000, rng)], rows)
    edges = np.array([0, 50, 1000, 2500, 5000])
    for lookups in (100, 3000, 40_000):
        batch = place[zipf(rows, lookups, rng)]
        assert sample.distinct(lookups) == pytest.approx(len(set(batch.tolist())), rel=0.15)
        reads, distinct = sample.between(lookups, edges)
        assert reads.sum() == pytest.approx(lookups)
        assert distinct.sum() == pytest.approx(sample.distinct(lookups), rel=0.05)
        assert reads == pytest.approx(np.histogram(batch, edges)[0], rel=0.25, abs=20)


@given(st.integers(1, 3000), st.integers(0, 500), st.integers(0, 2**32), st.booleans())
def test_invariants(rows: int, count: int, seed: int, ordered: bool) -> None:
    ids = np.random.default_rng(seed).integers(0, rows, count)
    popularity = Popularity.of_sample(ids, rows, ordered)
    assert float((popularity.counts * popularity.frequencies).sum()) == pytest.approx(1.0)
    edges = np.linspace(0, rows, 5).astype(np.int64)
    for lookups in (1, 1000):
        assert popularity.distinct(lookups) <= min(lookups, rows) + 1e-6
        reads, distinct = popularity.between(lookups, edges)
        assert reads.sum() == pytest.approx(lookups)
        assert (reads >= -1e-9).all()
        assert (distinct >= -1e-9).all()
        assert (distinct <= np.diff(edges)).all()


def test_uniform() -> None:
    popularity = Popularity.uniform(10_000)
    assert popularity.distinct(10_000) == pytest.approx(10_000 * (1 - np.exp(-1)))
    reads, distinct = popularity.between(400, np.array([0, 2500, 10_000]))
    assert reads == pytest.approx([100, 300])
    assert distinct == pytest.approx(popularity.distinct(400) * np.array([0.25, 0.75]))
