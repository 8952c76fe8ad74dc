"""Metrics of rows that are spread over 1, 2 and 4 real processes, against scikit-learn and literal sums over all rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from dlrm_mtl.metrics import METRICS
from dlrm_mtl.metrics.group_auc import gauc, gauc_groups, gauc_left_out, group_aucs
from tests.processes import run_processes

NONE = np.iinfo(np.int64).min
SLICES = 4


def case(seed: int) -> dict[str, Any]:
    """Rows with many or few distinct scores, weights and groups; some cases have one class, one group, or few rows."""
    rng = np.random.default_rng(seed)
    rows = int(rng.choice([0, 1, 2, 7, 60, 300, 1000]))
    levels = int(rng.choice([1, 3, 20, 10**6]))
    rate = float(rng.choice([0.0, 0.02, 0.5, 1.0], p=[0.1, 0.3, 0.5, 0.1]))
    groups = rng.integers(-(2**62), 2**62, int(rng.choice([1, 3, 20, 300])))
    group = rng.choice(groups, rows)
    if rng.random() < 0.5:
        group[rng.random(rows) < 0.6] = groups[0]  # more than the share of a process
    group[rng.random(rows) < 0.1] = NONE
    return {
        "scores": (rng.integers(-levels, levels + 1, rows) / max(levels / 4, 1)).astype(np.float32),
        "labels": (rng.random(rows) < rate).astype(np.float32),
        "weights": (np.ones(rows) if rng.random() < 0.4 else rng.random(rows) + 0.01).astype(np.float32),
        "group": group,
        "slice_of": rng.integers(0, SLICES - 1, rows),  # the last one is empty
        "home": rng.integers(0, 4, rows) * (rng.random() < 0.8),  # or all rows on the first process
    }


CASES = range(40)


def found(rank: int, kind: str) -> list[tuple[list[dict[str, Any]], list[Any], list[Any]]]:
    """For every case, the metrics of all rows and of slices, and the groups of both."""
    import torch.distributed as dist

    from dlrm_mtl.evaluation.group_metrics import aucs_of_groups
    from dlrm_mtl.evaluation.row_metrics import Grouping, TaskRows, metrics_of_rows

    result = []
    for seed in CASES:
        all_rows = case(seed)
        own = all_rows["home"] % dist.get_world_size() == rank
        rows = TaskRows(*(all_rows[name][own] for name in ("scores", "labels", "weights")))
        groupings = [Grouping(np.zeros(len(rows.scores), np.int64), 1), Grouping(all_rows["slice_of"][own], SLICES)]
        of_rows = {name: metric for name, metric in METRICS[kind].items() if metric.of_rows}
        metrics = metrics_of_rows(rows, groupings, of_rows)
        groups = [aucs_of_groups(rows, all_rows["group"][own], grouping) for grouping in groupings]
        result.append((metrics, *groups))
    return result


@pytest.fixture(scope="module", params=[1, 2, 4])
def results(request: pytest.FixtureRequest) -> list[Any]:
    everyone = run_processes(request.param, found, "binary")
    for other in everyone[1:]:
        np.testing.assert_equal(other, everyone[0])
    return everyone[0]


def test_they_are_those_of_scikit_learn(results: list[Any]) -> None:
    defined = 0
    for seed, (metrics, _, _) in zip(CASES, results, strict=True):
        rows = case(seed)
        labels, scores, weights = (rows[name].astype(float) for name in ("labels", "scores", "weights"))
        whole = {name: float(value[0]) for name, value in metrics[0].items()}
        if not 0 < labels.mean() < 1 if len(labels) else True:
            assert math.isnan(whole["auc"])
            assert math.isnan(whole["ks"])
            assert math.isnan(whole["normalized_entropy"])
            continue
        defined += 1
        given = {"sample_weight": weights}
        assert whole["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores, **given), abs=1e-12)
        expected = sklearn.metrics.average_precision_score(labels, scores, **given)
        assert whole["average_precision"] == pytest.approx(expected, abs=1e-12)
        wrong, right, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False, **given)
        assert whole["ks"] == pytest.approx(np.abs(right - wrong).max(), abs=1e-12)
        expected = sklearn.metrics.log_loss(labels, 1 / (1 + np.exp(-scores)), **given)
        assert whole["log_loss"] == pytest.approx(expected, rel=1e-12)
        expected = sklearn.metrics.recall_score(labels, scores > 0, **given)
        assert whole["recall"] == pytest.approx(expected, rel=1e-12)
    assert defined > 15


def test_every_slice_has_the_metrics_of_its_rows(results: list[Any]) -> None:
    for seed, (metrics, _, _) in zip(CASES, results, strict=True):
        rows = case(seed)
        for number in range(SLICES):
            own = rows["slice_of"] == number
            arguments = [rows[name][own].astype(float) for name in ("scores", "labels", "weights")]
            for name, values in metrics[1].items():
                expected = METRICS["binary"][name](*arguments)
                assert values[number] == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True), name


def test_groups_are_those_of_scikit_learn(results: list[Any]) -> None:
    defined = 0
    for seed, (_, (whole,), of_slices) in zip(CASES, results, strict=True):
        rows = case(seed)
        for found_groups, inside in [(whole, rows["slice_of"] >= 0)] + [
            (each, rows["slice_of"] == number) for number, each in enumerate(of_slices)
        ]:
            expected, groups, left_out = literal(rows, inside)
            assert gauc(found_groups) == pytest.approx(expected, abs=1e-12, nan_ok=True)
            assert (gauc_groups(found_groups), gauc_left_out(found_groups)) == (groups, left_out)
            defined += groups > 1
    assert defined > 30


def literal(rows: dict[str, np.ndarray], inside: np.ndarray) -> tuple[float, int, int]:
    """GAUC, number of groups with both classes and with one."""
    aucs, shares, left_out = [], [], 0
    for group in np.unique(rows["group"][inside]):
        if group == NONE:
            continue
        own = inside & (rows["group"] == group)
        labels, scores, weights = (rows[name][own].astype(float) for name in ("labels", "scores", "weights"))
        if labels.min() == labels.max():
            left_out += 1
            continue
        aucs.append(sklearn.metrics.roc_auc_score(labels, scores, sample_weight=weights))
        shares.append(weights.sum())
    return (float(np.average(aucs, weights=shares)) if aucs else math.nan), len(aucs), left_out


def test_the_array_form_gives_the_same() -> None:
    for seed in CASES:
        rows = case(seed)
        there = rows["group"] != NONE
        groups = group_aucs(*(rows[name][there] for name in ("scores", "labels", "weights", "group")))
        expected, count, left_out = literal(rows, there)
        assert gauc(groups) == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert (groups.groups, groups.left_out) == (count, left_out)


def skewed(rank: int) -> tuple[int, int, float]:
    """Largest number of rows that a process holds: one group of all rows, or one score of all rows."""
    from dlrm_mtl.evaluation.exchange import sort_over_processes

    rows = 20_000
    rng = np.random.default_rng(rank)
    distinct = np.stack([np.full(rows, 7), rng.permutation(rows * 4)[:rows]], axis=1)
    ties = np.full((rows, 2), 3)
    one_group, one_score = (sort_over_processes(keys, np.ones((rows, 1))) for keys in (distinct, ties))
    return len(one_group.keys), len(one_score.keys), float(one_score.values.sum())


def test_no_process_holds_much_more_than_its_share() -> None:
    sizes = run_processes(4, skewed)
    total = sum(size for size, _, _ in sizes)
    assert max(size for size, _, _ in sizes) <= total / 4 * 9 / 8 + 64
    assert sorted(size for _, size, _ in sizes) == [0, 0, 0, 1]
    assert sum(weight for _, _, weight in sizes) == 80_000


def quantiles(rank: int) -> list[list[float]]:
    import torch.distributed as dist

    from dlrm_mtl.evaluation.slices import quantile_edges

    result = []
    for seed in range(20):
        numbers = some_numbers(seed)
        result.append(quantile_edges(numbers[rank :: dist.get_world_size()], 5))
    return result


def some_numbers(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=int(rng.choice([0, 1, 3, 100]))) * 10.0 ** rng.integers(-200, 200)
    numbers = numbers.round(int(rng.integers(0, 3))) if rng.random() < 0.5 else numbers
    numbers[rng.random(len(numbers)) < 0.1] = math.nan
    return numbers


@pytest.mark.parametrize("processes", [1, 4])
def test_quantiles_are_exact(processes: int) -> None:
    for seed, edges in enumerate(run_processes(processes, quantiles)[0]):
        known = np.sort(some_numbers(seed)[~np.isnan(some_numbers(seed))])
        expected = (
            {float(known[len(known) * number // 5]) for number in range(1, 5)} - {float(known[0])}
            if len(known)
            else set()
        )
        assert edges == sorted(expected)


def refused(rank: int) -> list[str]:
    said = []
    for name in ("auc", "average_precision", "ks"):
        try:
            METRICS["binary"][name](np.array([0.0, math.nan]), np.array([0.0, 1.0]), np.ones(2))
        except ValueError as error:
            said.append(str(error))
    return said


def test_scores_that_are_not_numbers_are_refused() -> None:
    said = refused(0)
    assert len(said) == 3
    assert all("a score is nan" in each for each in said)
