"""Metrics by thresholds against scikit-learn and against definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.console import metrics_table
from dlrm_mtl.metrics.thresholds import average_precision, ece, f1, ks, precision, recall


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 200), st.integers(1, 50))
def test_against_scikit_learn(seed, rows, levels):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-levels, levels + 1, rows) / 4.0  # with ties
    labels = rng.integers(0, 2, rows).astype(float)
    labels[:2] = [0.0, 1.0]
    weights = rng.random(rows) + 0.1
    given_weights = {"sample_weight": weights}
    expected = sklearn.metrics.average_precision_score(labels, logits, **given_weights)
    assert average_precision(logits, labels, weights) == pytest.approx(expected, abs=1e-12)
    false_rates, true_rates, _ = sklearn.metrics.roc_curve(labels, logits, drop_intermediate=False, **given_weights)
    assert ks(logits, labels, weights) == pytest.approx(np.abs(true_rates - false_rates).max(), abs=1e-12)
    predicted = logits > 0
    if predicted.any():
        assert precision(logits, labels, weights) == pytest.approx(
            sklearn.metrics.precision_score(labels, predicted, **given_weights)
        )
    assert recall(logits, labels, weights) == pytest.approx(
        sklearn.metrics.recall_score(labels, predicted, **given_weights)
    )
    assert f1(logits, labels, weights) == pytest.approx(sklearn.metrics.f1_score(labels, predicted, **given_weights))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 100))
def test_calibration_error_bin_by_bin(seed, rows):
    rng = np.random.default_rng(seed)
    logits, weights = rng.normal(size=rows) * 3, rng.random(rows)
    labels = rng.integers(0, 2, rows).astype(float)
    probabilities = 1 / (1 + np.exp(-logits))
    error = 0.0
    for low in range(15):
        inside = [low / 15 <= p < (low + 1) / 15 for p in probabilities]
        if any(inside):
            w, p, y = weights[inside], probabilities[inside], labels[inside]
            error += w.sum() / weights.sum() * abs(np.average(p, weights=w) - np.average(y, weights=w))
    assert ece(logits, labels, weights) == pytest.approx(error, abs=1e-9)


def test_undefined_is_nan():
    empty, ones = np.empty(0), np.ones(3)
    for metric in (average_precision, ks, precision, recall, f1, ece):
        assert math.isnan(metric(empty, empty, empty))
        assert math.isnan(metric(np.zeros(3), np.ones(3), np.zeros(3)))
    for metric in (average_precision, ks, recall):
        assert math.isnan(metric(ones, np.zeros(3), ones))
    assert math.isnan(precision(-ones, ones, ones))
    assert math.isnan(f1(-ones, np.zeros(3), ones))
    assert ece(np.array([1e4, -1e4]), np.array([1.0, 0.0]), np.ones(2)) == 0.0


def test_the_table_of_a_training_leaves_them_out():
    metrics = {"click/auc": 0.7, "click/average_precision": 0.5, "click/ks": 0.3, "click/ece": 0.01}
    assert [column.header for column in metrics_table("", metrics, ["click"]).columns] == ["task", "AUC"]
