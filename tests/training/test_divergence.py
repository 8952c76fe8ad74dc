"""Runs that fail quietly are spoken of."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.training.divergence import DivergenceWatch
from tests import commands, synthetic


def logged(watch: DivergenceWatch, *losses: float) -> None:
    for step, loss in enumerate(losses):
        watch.log(step, {"loss/click": loss})


def test_a_loss_far_above_its_start_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = DivergenceWatch(["click"], stop=False)
    with caplog.at_level(logging.WARNING):
        logged(watch, 0.7, 9.0, 0.8, 9.0, 9.0)
        assert not caplog.records
        logged(watch, 9.0, 9.0, 1e10)
    (record,) = caplog.records
    assert "the loss of click is 9, 13 times its first value" in record.getMessage()


def test_it_ends_the_run_where_that_is_wanted() -> None:
    watch = DivergenceWatch(["click"], stop=True)
    with pytest.raises(UserError, match="training diverges; lower optimizer"):
        logged(watch, 0.7, 1e3, 1e4, 1e5)


def test_skipped_steps_and_falling_losses_are_no_divergence(caplog: pytest.LogCaptureFixture) -> None:
    logged(DivergenceWatch(["click"], stop=True), 0.7, math.nan, math.nan, math.nan, 0.6, 0.1, 0.0, 0.0, 0.0)
    assert not caplog.records


def test_a_task_without_rows_and_a_metric_that_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    watch = DivergenceWatch(["click"], stop=True)
    logged(watch, 0.0, 0.0, 0.0, 0.0)
    watch.evaluation(10, "mean/auc", math.nan)
    watch.evaluation(20, "mean/auc", math.nan)
    watch.evaluation(30, "mean/auc", 0.5)
    watch.evaluation(40, "mean/auc", 0.5)
    empty, undefined, alike = (record.getMessage() for record in caplog.records)
    assert "the task click has had no row" in empty
    assert "mean/auc is undefined on the validation split" in undefined
    assert "stays at 0.5: all predictions are alike" in alike


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    dataset = synthetic.write_dataset(tmp_path / "data", rows=1200)
    rates = {
        "dense": {"name": "adam", "learning_rate": 2.0},
        "sparse": {"name": "rowwise_adagrad", "learning_rate": 5.0},
    }
    content = synthetic.config(dataset, optimizer=rates, training={"log_every": 1, "stop_on_divergence": True})
    config = commands.write_config(tmp_path / "run.yaml", content)
    done = commands.run("train", config, "--output", tmp_path / "run")
    assert done.returncode == 2
    assert "training diverges" in done.stderr
