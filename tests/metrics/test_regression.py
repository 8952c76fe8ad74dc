"""Metrics of real labels against scikit-learn."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import sklearn.metrics
from rich.console import Console

from dlrm_mtl.console import headlines, metrics_table
from dlrm_mtl.metrics import ALL_METRICS, METRICS
from dlrm_mtl.metrics.regression import mae, mse, rmse
from dlrm_mtl.tasks.config import TaskConfig


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    predictions, labels, weights = rng.normal(size=100), rng.normal(size=100), rng.random(100)
    expected = sklearn.metrics.mean_squared_error(labels, predictions, sample_weight=weights)
    assert mse(predictions, labels, weights) == pytest.approx(expected)
    assert rmse(predictions, labels, weights) == pytest.approx(math.sqrt(expected))
    expected = sklearn.metrics.mean_absolute_error(labels, predictions, sample_weight=weights)
    assert mae(predictions, labels, weights) == pytest.approx(expected)


def test_rows_of_weight_zero_do_not_count_and_no_rows_are_nan() -> None:
    predictions, labels = np.array([1.0, 2.0, 50.0]), np.array([0.0, 2.0, 0.0])
    for metric in METRICS["real"].values():
        assert metric(predictions, labels, np.array([1.0, 1.0, 0.0])) == metric(predictions[:2], labels[:2], np.ones(2))
        assert math.isnan(metric(np.empty(0), np.empty(0), np.empty(0)))


def test_one_name_is_one_metric() -> None:
    assert all(ALL_METRICS[name] == metric for kind in METRICS.values() for name, metric in kind.items())


def test_tables_show_a_dash_for_what_a_task_does_not_have() -> None:
    tasks = [TaskConfig(name="click"), TaskConfig(name="seconds", loss="huber")]
    metrics = {f"click/{name}": 0.5 for name in METRICS["binary"]} | {
        f"seconds/{name}": 1.25 for name in METRICS["real"]
    }
    metrics["click/auc"] = math.nan
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(metrics_table("title", metrics, ["click", "seconds"]))
    lines = [line.split("│")[1:-1] for line in console.export_text().splitlines() if "│" in line]
    cells = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}
    assert cells["click"] == ["-", "0.5000", "0.5000", "0.500", "0", "-", "-", "-"]
    assert cells["seconds"] == ["-"] * 5 + ["1.2500"] * 3
    metrics["click/auc"] = 0.75
    assert headlines(tasks, metrics) == "AUC click 0.7500; RMSE seconds 1.2500"
    assert headlines(tasks[:1], metrics) == "AUC click 0.7500"
