"""Scores in bins: against exact quantiles and curves of all rows, on any number of processes."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from dlrm_mtl.metrics.score_bins import QUANTILES, ScoreBins, quantile_keys, score_bins
from tests.processes import run_processes


def whole(array: np.ndarray) -> np.ndarray:
    return array


def one_task(scores: np.ndarray, labels: np.ndarray, kind: str = "binary") -> ScoreBins:
    columns = (scores[:, None].astype(np.float32), labels[:, None], np.ones((len(labels), 1)))
    return score_bins(*columns, [kind])[0]


@settings(deadline=None)
@given(arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 2**32 - 1)), st.integers(1, 20))
def test_quantiles(keys: np.ndarray, count: int) -> None:
    keys.sort()
    (found,) = quantile_keys([keys], count, whole)
    expected = {int(keys[math.ceil(Fraction(len(keys) * number, count)) - 1]) for number in range(1, count + 1)}
    assert found.tolist() == sorted(expected)


@settings(deadline=None)
@given(
    arrays(
        np.float32,
        st.integers(1, 80),
        elements=st.one_of(st.sampled_from([0.0, -0.0, 1.5, -1.5]), st.floats(-90, 90, width=32)),
    ),
    st.randoms(),
)
def test_few_scores_are_kept_one_by_one(scores: np.ndarray, random: object) -> None:
    labels = np.array([random.random() < 0.5 for _ in scores], np.float64)  # type: ignore[attr-defined]
    bins = one_task(scores, labels)
    values, place = np.unique(scores + 0.0, return_inverse=True)
    np.testing.assert_array_equal(bins.upto, values)
    np.testing.assert_array_equal(bins.rows, np.bincount(place))
    np.testing.assert_array_equal(bins.positives, np.bincount(place, labels))
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
    np.testing.assert_allclose(bins.predicted, np.bincount(place, probability), rtol=1e-12)


def test_many_scores_lie_in_bins_of_bounded_number() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(200_000) < 0.001).astype(np.float64)
    scores = (rng.normal(size=len(labels)) + 2 * labels).astype(np.float32)
    bins = one_task(scores, labels)
    assert len(bins.rows) <= 3 * QUANTILES
    assert bins.rows.max() <= len(labels) / QUANTILES
    assert bins.positives.max() == 1
    assert (bins.rows.sum(), bins.positives.sum()) == (len(labels), labels.sum())
    assert area(bins) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)  # every positive is a bin of its own


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_the_area_from_bins(rate: float) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(100_000) < rate).astype(np.float64)
    scores = (rng.normal(size=len(labels)) + labels).astype(np.float32)
    bins = one_task(scores, labels)
    assert len(bins.rows) <= 3 * QUANTILES
    assert area(bins) == pytest.approx(roc_auc_score(labels, scores), abs=5e-6)


def area(bins: ScoreBins) -> float:
    """Area under the ROC curve, with all rows of a bin tied."""
    classes = np.repeat([1, 0], len(bins.upto))
    counts = np.concatenate([bins.positives, bins.rows - bins.positives])
    return float(roc_auc_score(classes, np.tile(bins.upto, 2), sample_weight=counts))


def test_rows_that_do_not_count() -> None:
    scores = np.array([[1.0], [np.nan], [np.inf], [2.0]], np.float32)
    labels, weights = np.array([[1.0], [1.0], [1.0], [0.0]]), np.array([[0.5], [1.0], [1.0], [0.0]])
    (bins,) = score_bins(scores, labels, weights, ["ranking"])
    assert (bins.upto.tolist(), bins.rows.tolist(), bins.weight.tolist()) == ([1.0], [1], [0.5])
    assert (bins.observed.tolist(), bins.predicted.tolist()) == ([0.5], [0.5])
    (empty,) = score_bins(scores[:0], labels[:0], weights[:0], ["binary"])
    assert len(empty.rows) == 0


def test_real_labels() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.normal(size=5000), rng.normal(size=5000).astype(np.float32)
    bins = one_task(scores, labels, "real")
    assert len(bins.rows) == QUANTILES
    error = np.abs(scores - labels)
    np.testing.assert_allclose(bins.errors.sum(axis=1), [(error**power).sum() for power in (1, 2, 4)])
    np.testing.assert_allclose(bins.observed.sum(), labels.sum())


def test_json() -> None:
    rng = np.random.default_rng(2)
    for kind in ("binary", "real"):
        bins = one_task(rng.normal(size=3000), (rng.random(3000) < 0.3).astype(np.float64), kind)
        text = json.dumps(bins.as_json())
        assert len(text) < 80_000
        again = ScoreBins.from_json(json.loads(text))
        for name in ("upto", "rows", "positives", "weight", "observed", "predicted", "errors"):
            np.testing.assert_allclose(getattr(again, name), getattr(bins, name), rtol=1e-8)


@pytest.mark.parametrize("content", [{}, {"kind": "binary", "upto": [1.0]}, {"kind": "binary", "upto": 3}])
def test_other_json(content: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="bins of scores"):
        ScoreBins.from_json(content)
    full = one_task(np.array([1.0, 2.0]), np.array([0.0, 1.0])).as_json()
    with pytest.raises(ValueError, match="different lengths"):
        ScoreBins.from_json({**full, "rows": [1]})


def parts(rank: int, count: int) -> str:
    """The bins of all rows, of which every process has some, and the last one none."""
    import torch
    import torch.distributed as dist

    def total(array: np.ndarray) -> np.ndarray:
        summed = torch.from_numpy(array)
        dist.all_reduce(summed)
        return summed.numpy()

    rng = np.random.default_rng(3)
    scores = rng.normal(size=(4000, 2)).astype(np.float32)
    labels = (rng.random((4000, 2)) < 0.1).astype(np.float64)
    own = np.arange(4000) % max(count - 1, 1) == rank
    found = score_bins(scores[own], labels[own], np.ones_like(labels[own]), ["binary", "real"], total)
    return json.dumps([bins.as_json() for bins in found])


def test_bins_are_the_same_on_any_number_of_processes() -> None:
    alone = run_processes(1, parts, 1)
    assert run_processes(3, parts, 3) == alone * 3
