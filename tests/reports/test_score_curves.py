"""Curves and intervals from scores in bins, against scikit-learn on the rows and a bootstrap of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from dlrm_mtl.metrics import METRICS
from dlrm_mtl.metrics.score_bins import ScoreBins, score_bins
from dlrm_mtl.reports.row_intervals import row_intervals
from dlrm_mtl.reports.score_curves import has_both_classes, precision_recall, prediction_counts, reliability, roc


def data(rows: int, rate: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < rate).astype(np.float64)
    scores = rng.normal(size=rows) + 1.2 * labels + np.log(rate / (1 - rate))
    return scores.astype(np.float32), labels


def binned(scores: np.ndarray, labels: np.ndarray, kind: str = "binary") -> ScoreBins:
    return score_bins(scores[:, None].astype(np.float32), labels[:, None], np.ones((len(labels), 1)), [kind])[0]


def test_curves_of_few_rows_are_exact() -> None:
    scores, labels = data(200, 0.3)
    scores = np.round(scores, 1)  # with ties
    bins = binned(scores, labels)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc(bins), (false, true))
    precision, recall, _ = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(precision_recall(bins), (recall[-2::-1], precision[-2::-1]))


def test_curves_of_many_rows() -> None:
    scores, labels = data(60_000, 0.01)
    bins = binned(scores, labels)
    recall, precision = precision_recall(bins)
    area = (np.diff(recall, prepend=0.0) * precision).sum()
    assert area == pytest.approx(average_precision_score(labels, scores), rel=5e-3)


def test_reliability() -> None:
    scores, labels = data(6000, 0.3)
    probabilities = 1 / (1 + np.exp(-scores.astype(np.float64)))
    found = reliability(binned(scores, labels), 10)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(found.observed, observed, atol=0.01)
    np.testing.assert_allclose(found.predicted, predicted, atol=0.01)
    counts = prediction_counts(binned(scores, labels), np.linspace(0, 1, 11))
    assert counts.sum() == 6000
    assert counts == pytest.approx(np.histogram(probabilities, np.linspace(0, 1, 11))[0], abs=30)
    # Ten equal scores are one point: the interval is that of a share of ten.
    one = reliability(binned(np.zeros(10), np.repeat([0.0, 1.0], [7, 3])))
    low, high = stats.binomtest(3, 10).proportion_ci(method="wilson")
    assert (*one.observed, *one.low, *one.high) == pytest.approx((0.3, low, high))


@pytest.mark.parametrize("rate", [0.3, 0.02])
def test_intervals_are_those_of_a_bootstrap_over_rows(rate: float) -> None:
    scores, labels = data(3000, rate)
    ones = np.ones(len(labels))
    exact = {name: metric(scores.astype(np.float64), labels, ones) for name, metric in METRICS["binary"].items()}
    found = row_intervals(binned(scores, labels), exact)
    rng = np.random.default_rng(1)
    draws = [rng.integers(0, len(labels), len(labels)) for _ in range(250)]
    assert found.keys() >= {"auc", "log_loss", "normalized_entropy", "calibration", "average_precision", "ks", "recall"}
    assert "ece" not in found
    for name, (low, high) in found.items():
        values = [METRICS["binary"][name](scores[own].astype(np.float64), labels[own], ones) for own in draws]
        expected = np.quantile(values, [0.025, 0.975])
        assert (low, high) == pytest.approx(expected, abs=0.25 * (expected[1] - expected[0])), name
        assert low <= exact[name] <= high


def test_intervals_of_real_labels() -> None:
    rng = np.random.default_rng(2)
    labels = rng.exponential(size=5000)
    scores = (labels + rng.normal(size=5000)).astype(np.float32)
    exact = {name: metric(scores.astype(np.float64), labels, np.ones(5000)) for name, metric in METRICS["real"].items()}
    found = row_intervals(binned(scores, labels, "real"), exact)
    error = np.abs(scores - labels)
    for name, values in (("mae", error), ("mse", error**2)):
        expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
        assert found[name] == pytest.approx(expected, rel=1e-6)
    assert found["rmse"] == pytest.approx(np.sqrt(found["mse"]))


def test_what_has_no_interval() -> None:
    one_class = binned(np.arange(20.0), np.zeros(20))
    assert not has_both_classes(one_class)
    assert row_intervals(one_class, {"auc": float("nan"), "log_loss": 0.5}).keys() == {"log_loss"}
    assert row_intervals(binned(np.zeros(0), np.zeros(0)), {"auc": 0.5}) == {}
    ranking = binned(np.arange(20.0), np.tile([0.0, 1.0], 10), "ranking")
    assert row_intervals(ranking, {"auc": 0.5, "mrr": 0.1, "ndcg@10": 0.2}).keys() == {"auc"}
