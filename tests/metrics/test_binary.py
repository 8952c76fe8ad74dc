"""Metrics against scikit-learn and against definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.metrics import METRICS
from dlrm_mtl.metrics.binary import auc, calibration, log_loss, normalized_entropy, positives


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 200), st.integers(1, 50))
def test_against_scikit_learn(seed: int, rows: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-levels, levels + 1, rows) / 4.0  # with ties
    labels = rng.integers(0, 2, rows).astype(float)
    labels[:2] = [0.0, 1.0]
    weights = rng.random(rows) + 0.1
    probabilities = 1.0 / (1.0 + np.exp(-logits))
    assert auc(logits, labels, weights) == pytest.approx(
        sklearn.metrics.roc_auc_score(labels, logits, sample_weight=weights), abs=1e-12
    )
    expected = sklearn.metrics.log_loss(labels, probabilities, sample_weight=weights)
    assert log_loss(logits, labels, weights) == pytest.approx(expected, rel=1e-9)
    assert calibration(logits, labels, weights) == pytest.approx(
        (weights * probabilities).sum() / (weights * labels).sum()
    )


def test_normalized_entropy_is_one_for_the_mean() -> None:
    labels = np.array([0.0, 0.0, 1.0, 0.0])
    logits = np.full(4, math.log(0.25 / 0.75))
    assert normalized_entropy(logits, labels, np.ones(4)) == pytest.approx(1.0)


def test_rows_of_weight_zero_do_not_count() -> None:
    logits, labels = np.array([0.3, -1.0, 5.0]), np.array([1.0, 0.0, 0.0])
    for metric in METRICS["binary"].values():
        assert metric(logits, labels, np.array([1.0, 1.0, 0.0])) == metric(logits[:2], labels[:2], np.ones(2))


def test_undefined_is_nan() -> None:
    empty = np.empty(0)
    assert math.isnan(auc(empty, empty, empty))
    assert math.isnan(log_loss(empty, empty, empty))
    assert math.isnan(auc(np.zeros(3), np.zeros(3), np.ones(3)))
    assert math.isnan(normalized_entropy(np.zeros(3), np.ones(3), np.ones(3)))
    assert math.isnan(calibration(np.zeros(3), np.zeros(3), np.ones(3)))


def test_extreme_logits_stay_finite() -> None:
    logits, labels = np.array([1e4, -1e4, 1e4]), np.array([1.0, 0.0, 0.0])
    assert log_loss(logits, labels, np.ones(3)) == pytest.approx(1e4 / 3)
    assert positives(logits, labels, np.ones(3)) == 1.0
