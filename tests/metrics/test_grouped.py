"""Metrics by group are those of scikit-learn for each group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from dlrm_mtl.metrics.grouped import GroupedOrder
from dlrm_mtl.metrics.ranking import mrr, ndcg


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60), groups=st.integers(1, 6), levels=st.integers(1, 9))
def test_they_are_means_over_groups(seed: int, rows: int, groups: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    group, score = rng.integers(0, groups, rows), rng.integers(0, levels, rows).astype(np.float32)
    positive, counted = rng.random(rows) < 0.4, rng.random(rows) < 0.8
    order = GroupedOrder(group, score)
    aucs, weights, gains, reciprocal = [], [], [], []
    for number in range(groups):
        own = (group == number) & counted
        labels, scores = positive[own], score[own]
        if labels.any() and not labels.all():
            aucs.append(roc_auc_score(labels, scores))
            weights.append(len(labels))
        if labels.any():
            gains.append(ndcg_score([labels.tolist()], [scores], k=3) if len(labels) > 1 else 1.0)
            above = [(scores > each).sum() + ((scores == each).sum() + 1) / 2 for each in scores[labels]]
            reciprocal.append(np.mean(1 / np.array(above)))
    found = order.positions(positive, counted)
    expected = np.average(aucs, weights=weights) if aucs else np.nan
    assert order.gauc(positive, counted) == pytest.approx(expected, nan_ok=True)
    assert ndcg(found, 3) == pytest.approx(np.mean(gains) if gains else np.nan, nan_ok=True)
    assert mrr(found) == pytest.approx(np.mean(reciprocal) if gains else np.nan, nan_ok=True)
