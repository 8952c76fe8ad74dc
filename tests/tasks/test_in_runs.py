"""Masked, sampled and regression tasks in whole runs, and on one and two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from tests import commands, synthetic
from tests.processes import run_processes

TASKS = [
    {"name": "click", "negative_sampling": 0.25},
    {"name": "bought", "label": "buy", "only_where": "seen", "positive_weight": 2},
    {"name": "seconds", "loss": {"name": "huber", "delta": 3}, "weight": 0.3, "only_where": "click"},
    {"name": "rare", "label": "buy", "loss": "focal", "positive_weight": 9},
    {"name": "click and buy", "label": "buy", "product_of": ["click", "bought"]},
]
"""`seen` is a label that no task has."""
STEPS = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic data set with two more labels: seconds, a real number, and seen, binary; both with nulls."""
    folder = synthetic.write_dataset(tmp_path_factory.mktemp("data"))
    rng = np.random.default_rng(5)
    for file in sorted(folder.glob("*/*.parquet")):
        table = pq.read_table(file)
        seconds = 0.5 + table["price"].to_numpy() + 0.1 * rng.normal(size=table.num_rows)
        table = table.append_column("seconds", pa.array(seconds, mask=rng.random(table.num_rows) < 0.1))
        seen = (rng.random(table.num_rows) < 0.7).astype(np.int8)
        table = table.append_column("seen", pa.array(seen, mask=rng.random(table.num_rows) < 0.1))
        pq.write_table(table, file, row_group_size=100)
    path = folder / "dataset.yaml"
    spec = yaml.safe_load(path.read_text())
    spec["labels"] += [{"name": "seconds", "kind": "real"}, {"name": "seen"}]
    path.write_text(yaml.safe_dump(spec))
    return folder


def content(dataset: Path, **changes: Any) -> dict[str, object]:
    changes.setdefault("training", {"epochs": 6, "log_every": 1, "early_stopping": {"metric": "click/auc"}})
    return synthetic.config(dataset, tasks=TASKS, **changes)


def losses(rank: int, folder: Path) -> list[list[float]]:
    """The losses of the first steps; with the sampling of negatives, which must be the same on any number of processes."""
    import torch
    import torch.distributed as dist

    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.storage.run_store import LocalStore
    from dlrm_mtl.training.build import build_model, build_optimizers
    from dlrm_mtl.training.loaders import make_loader
    from dlrm_mtl.training.loop import RunParts, Trainer

    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    dataset = open_dataset(str(folder))
    config = RunConfig.model_validate(content(folder, sharding={"default": "row_wise"}))
    model = build_model(config, dataset.spec, process)
    optimizers = build_optimizers(config, model, STEPS)
    loader = make_loader(config, dataset, "train", process)
    trainer = Trainer(RunParts(config, process, model, optimizers, loader, Checkpoints(LocalStore(folder)), RunState()))
    values = []
    for batch in loader.epoch(0):
        parts, _ = trainer.step([batch], trainer.progress.step, 0)
        dist.all_reduce(parts)
        values.append(parts.tolist())
        trainer.progress.step += 1
        if trainer.progress.step == STEPS:
            break
    return values


def test_losses_do_not_depend_on_the_number_of_processes(dataset: Path) -> None:
    (alone,) = run_processes(1, losses, dataset)
    assert np.isfinite(alone).all()
    assert (np.array(alone) > 0).all()
    for result in run_processes(2, losses, dataset):
        np.testing.assert_allclose(result, alone, rtol=1e-5)


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = commands.write_config(folder.parent / "run.yaml", content(dataset))
    done = commands.run("train", config, "--output", folder, processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    (note,) = [line for line in done.stdout.splitlines() if line.startswith("note: ")]
    assert "tasks.3.positive_weight: 9 is ignored" in note
    validations = [line for line in done.stdout.splitlines() if "validation click/auc" in line]
    assert all("AUC click" in line and "; RMSE seconds" in line for line in validations)
    assert len(validations) == 6
    return folder


def results(run: Path) -> dict[str, float]:
    return json.loads((run / "results.json").read_text())["test"]


def test_each_kind_of_task_has_its_metrics(finished: Path) -> None:
    metrics = results(finished)
    assert {key.partition("/")[2] for key in metrics if key.startswith("seconds/")} == {"rmse", "mse", "mae"}
    assert "click/rmse" not in metrics
    assert metrics["mean/rmse"] == metrics["seconds/rmse"]
    assert metrics["mean/auc"] == pytest.approx(
        np.mean([metrics[f"{task}/auc"] for task in ("click", "bought", "rare", "click and buy")])
    )
    assert metrics["seconds/mse"] == pytest.approx(metrics["seconds/rmse"] ** 2)
    assert metrics["click/auc"] > 0.6
    assert metrics["seconds/rmse"] < 0.9, "its standard deviation is 1"


def test_masks_apply_to_evaluation(finished: Path, dataset: Path) -> None:
    table = pq.read_table(dataset / "test").to_pydict()
    seen = [row for row, value in enumerate(table["seen"]) if value == 1]
    metrics = results(finished)
    assert metrics["bought/positives"] == sum(table["buy"][row] == 1 for row in seen)
    assert metrics["rare/positives"] == sum(value == 1 for value in table["buy"]) > metrics["bought/positives"]


def test_predictions_repeat_the_metrics_and_stay_calibrated(finished: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    done = commands.run("predict", finished, "--input", dataset / "test", "--output", out)
    assert done.returncode == 0, done.stderr
    predicted, table = pq.read_table(out), pq.read_table(dataset / "test")
    metrics = results(finished)
    click, labels = predicted["click"].to_numpy(), table["click"].to_numpy()
    assert click.sum() / labels.sum() == pytest.approx(metrics["click/calibration"], rel=1e-5)
    assert 0.8 < metrics["click/calibration"] < 1.25, "uncorrected it would be near 1.6"
    both = click.astype(np.float64) * predicted["bought"].to_numpy()
    np.testing.assert_allclose(predicted["click and buy"].to_numpy(), both, rtol=1e-5)
    seconds = np.array([math.nan if value is None else value for value in table["seconds"].to_pylist()])
    counted = np.isfinite(seconds) & (labels == 1)
    errors = predicted["seconds"].to_numpy()[counted] - seconds[counted]
    assert math.sqrt(np.mean(errors**2)) == pytest.approx(metrics["seconds/rmse"], rel=1e-4)


def test_a_metric_that_no_task_has_cannot_be_watched(dataset: Path) -> None:
    from dlrm_mtl.run.train import check_tasks

    training = {"early_stopping": {"metric": "seconds/auc"}}
    config = RunConfig.model_validate(content(dataset, training=training))
    with pytest.raises(UserError) as error:
        check_tasks(config, open_dataset(str(dataset)).spec)
    assert "training.early_stopping.metric: there is no metric 'seconds/auc'" in str(error.value)
    assert "seconds/rmse" in str(error.value)
