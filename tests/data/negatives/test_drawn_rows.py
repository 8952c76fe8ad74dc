"""Negative sampling beside plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.core.randomness import bits, uniform
from dlrm_mtl.data.negatives.drawn_rows import NegativeSampler
from dlrm_mtl.data.negatives.known_pairs import KnownPairs


def splitmix(state: int) -> int:
    """One step of SplitMix64, as published."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(seed=st.integers(-(2**63), 2**63 - 1), keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
def test_bits_are_splitmix_chained(seed: int, keys: list[int]) -> None:
    mask = 2**64 - 1
    state = splitmix(seed & mask)
    for key in keys:
        state = splitmix(state ^ ((((key & mask) + 0x9E3779B97F4A7C15) * 0xD1342543DE82EF95) & mask))
    assert int(bits(seed, *keys)[0]) == state
    assert float(uniform(seed, *keys)[0]) == (state >> 11) / 2**53


def test_splitmix_reference_value() -> None:
    """First output of the reference implementation for state 0 (Vigna, splitmix64.c)."""
    assert int(bits(0)[0]) == 0xE220A8397B1DCDAF


ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1000)), min_size=1, max_size=12)
KNOWN = st.sets(st.tuples(st.integers(0, 5), st.integers(1, 8)))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 50), min_size=8, max_size=8).filter(any),
    exponent=st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    rows=ROWS,
    known=KNOWN,
    each=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_never_known_and_independent_of_order_and_batching(
    counts: list[int],
    exponent: float,
    rows: list[tuple[int, int]],
    known: set[tuple[int, int]],
    each: int,
    order: object,
) -> None:
    sampler = NegativeSampler(np.array(counts), exponent, seed=3)
    users, keys = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    pairs = np.array(sorted(known), dtype=np.int64).reshape(-1, 2)
    pairs_known = KnownPairs.of(pairs[:, 0], pairs[:, 1])
    drawn = sampler.sample(users, keys, each, pairs_known)
    possible = {item for item in range(1, 9) if exponent == 0 or counts[item - 1] > 0}
    for user, items in zip(users.tolist(), drawn.tolist(), strict=True):
        left = possible - {item for owner, item in known if owner == user}
        assert all(item in left for item in items) if left else items == [0] * each
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = np.concatenate([sampler.sample(users[[i]], keys[[i]], each, pairs_known) for i in shuffled])
    assert np.array_equal(again, drawn[shuffled])


@pytest.mark.parametrize("exponent", [0.0, 0.75])
@pytest.mark.parametrize("known", [set(), {1, 3}, {1, 2, 3, 4}])
def test_distribution_is_popularity_to_the_power_over_unknown_items(exponent: float, known: set[int]) -> None:
    counts = np.array([1000, 10, 300, 60, 30, 1])
    sampler = NegativeSampler(counts, exponent, seed=0)
    rows = 40_000
    keys = np.arange(rows)
    pairs = KnownPairs.of(np.zeros(len(known), dtype=np.int64), np.array(sorted(known), dtype=np.int64))
    drawn = sampler.sample(np.zeros(rows, dtype=np.int64), keys, 2, pairs)
    weights = {item: float(counts[item - 1]) ** exponent for item in range(1, 7) if item not in known}
    for item in range(1, 7):
        share = weights.get(item, 0.0) / sum(weights.values())
        deviation = 5 * (share * (1 - share) / drawn.size) ** 0.5
        assert abs((drawn == item).mean() - share) <= deviation


def test_users_who_know_nearly_everything_get_the_rest() -> None:
    sampler = NegativeSampler(np.array([10**9] * 50 + [1]), 1.0, seed=1)
    known = KnownPairs.of(np.full(50, 7), np.arange(1, 51))
    assert set(sampler.sample(np.full(20, 7), np.arange(20), 3, known).ravel().tolist()) == {51}


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="no item"):
        NegativeSampler(np.array([], dtype=np.int64), 0.0, 0)
    with pytest.raises(ValueError, match="exponent -1"):
        NegativeSampler(np.array([1]), -1.0, 0)
