"""Ranking metrics against scipy, scikit-learn and literal sums over all orders of tied items."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.metrics.ranking import NO_POSITIONS, Positions, all_metrics, mrr, ndcg, positions, precision, recall

ITEMS = 6


@st.composite
def users(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Scores with ties, targets and seen items, which may overlap, for one to three users."""
    result = []
    for _ in range(draw(st.integers(1, 3))):
        scores = np.array(draw(st.lists(st.integers(0, 3), min_size=ITEMS, max_size=ITEMS)), dtype=float)
        items = st.lists(st.integers(0, ITEMS - 1), unique=True)
        targets = draw(items.filter(len))
        result.append((scores, np.array(targets), np.array(draw(items), dtype=np.int64)))
    return result


def found(cases: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Positions:
    return sum((positions(user, *case) for user, case in enumerate(cases)), NO_POSITIONS)


def orders(scores: np.ndarray, targets: np.ndarray, seen: np.ndarray) -> list[list[int]]:
    """All orders of the candidates by falling score."""
    left = [item for item in range(len(scores)) if item in targets or item not in seen]
    return [
        list(order)
        for order in itertools.permutations(left)
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


@settings(max_examples=40, deadline=None)
@given(users(), st.integers(1, ITEMS + 2))
def test_at_k_is_the_mean_over_all_orders(cases: list[tuple[np.ndarray, np.ndarray, np.ndarray]], k: int) -> None:
    wanted: dict[str, list[float]] = {"recall": [], "precision": [], "ndcg": []}
    for scores, targets, seen in cases:
        hits, gains = [], []
        for order in orders(scores, targets, seen):
            places = [place for place, item in enumerate(order[:k], start=1) if item in targets]
            hits.append(len(places))
            gains.append(sum(1 / math.log2(1 + place) for place in places))
        best = sum(1 / math.log2(1 + place) for place in range(1, min(k, len(targets)) + 1))
        wanted["recall"].append(np.mean(hits) / len(targets))
        wanted["precision"].append(np.mean(hits) / k)
        wanted["ndcg"].append(np.mean(gains) / best)
    all_found = found(cases)
    assert recall(all_found, k) == pytest.approx(np.mean(wanted["recall"]))
    assert precision(all_found, k) == pytest.approx(np.mean(wanted["precision"]))
    assert ndcg(all_found, k) == pytest.approx(np.mean(wanted["ndcg"]))


@settings(max_examples=40, deadline=None)
@given(users())
def test_mrr_as_scipy_ranks(cases: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    wanted = []
    for scores, targets, seen in cases:
        low = scores.copy()
        low[np.setdiff1d(seen, targets)] = -1.0  # forced to the end
        wanted.append(np.mean(1.0 / stats.rankdata(-low)[targets]))
    assert mrr(found(cases)) == pytest.approx(np.mean(wanted))


@settings(max_examples=25, deadline=None)
@given(users(), st.integers(1, ITEMS))
def test_ndcg_as_scikit_learn(cases: list[tuple[np.ndarray, np.ndarray, np.ndarray]], k: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    nothing = np.empty(0, np.int64)
    unseen = [(scores, targets, nothing) for scores, targets, _ in cases]
    relevant = np.array([np.isin(np.arange(ITEMS), targets) for _, targets, _ in unseen])
    scores = np.array([scores for scores, _, _ in unseen])
    assert ndcg(found(unseen), k) == pytest.approx(metrics.ndcg_score(relevant, scores, k=k))


def test_items_that_are_no_candidates() -> None:
    scores = np.array([-np.inf, 3.0, 2.0, 1.0])
    alone = positions(7, scores, np.array([2, 2]), np.array([1]))
    assert (alone.user.tolist(), alone.above.tolist(), alone.tied.tolist()) == ([7], [0], [1])
    assert all_metrics(alone, (1,)) == {"mrr": 1.0, "ndcg@1": 1.0, "recall@1": 1.0, "precision@1": 1.0}
    assert all(math.isnan(value) for value in all_metrics(NO_POSITIONS).values())
