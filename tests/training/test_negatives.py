"""Runs on data of observed rows only, with drawn negatives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.dataset import Split, open_dataset
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.run.resume import check_same_data, data_order
from dlrm_mtl.storage.run_store import LocalStore
from dlrm_mtl.tasks.check import starting_logits
from dlrm_mtl.training.build import build_model, build_optimizers
from dlrm_mtl.training.loaders import make_loader, training_loader
from dlrm_mtl.training.loop import RunParts, Trainer
from dlrm_mtl.training.tensors import RunTensors
from tests import commands
from tests.data.negatives.shop import ALONG, write
from tests.data.reading import actual
from tests.embeddings.two_phase_model import whole
from tests.processes import run_processes

STEPS = 13
"""Of 142 rows, 16 at a time: more than an epoch."""
NEGATIVES: dict[str, dict[str, Any]] = {
    "popularity": {"by": "popularity", "each": 3, "known": "avoid", "user": "user", "along": ALONG},
    "in_batch": {"by": "in_batch", "each": 2, "along": ALONG},
    "unbounded": {"by": "in_batch", "each": 2, "along": ALONG, "known": "avoid", "user": "user"},
}
UNBOUNDED: dict[str, Any] = {"unbounded": {"item": 20, "user": 10}}


def content(folder: Path, negatives: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """A run's configuration; ``changes`` of its data."""
    data: dict[str, Any] = {
        "path": str(folder),
        "batch_size": 16,
        "evaluation_batch_size": 16,
        "lanes": 4,
        "block_rows": 40,
    }
    if negatives is not None:
        data["negatives"] = {"item": "item", **negatives}
    return {
        "name": "shop",
        "seed": 3,
        "data": {**data, **changes},
        "tasks": [{"name": "click"}, {"name": "buy", "weight": 0.5}],
        "model": {
            "embeddings": {"dim": 8, "init_std": 0.1},
            "embedding_dropout": 0.1,
            "multitask": {"name": "mmoe", "experts": 2, "layers": [8], "dropout": 0.1},
            "tower": {"layers": [4]},
        },
        "optimizer": {"sparse": {"name": "rowwise_adagrad", "learning_rate": 0.1}},
        "training": {"epochs": 2, "log_every": 1, "checkpoint_every": 3},
    }


def trained(
    rank: int, folder: Path, runs: Path, steps: int, resume: bool = False
) -> dict[str, dict[str, torch.Tensor]]:
    """The weights after so many steps with each kind of negatives, which are also saved below ``runs``."""
    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    dataset = open_dataset(str(folder))
    result = {}
    for name, negatives in NEGATIVES.items():
        run = content(folder, negatives, **(UNBOUNDED if name == "unbounded" else {}))
        run["training"] = {"max_steps": steps, "epochs": 2}
        config = RunConfig.model_validate(run)
        model = build_model(config, dataset.spec, process)
        loader = training_loader(config, dataset.split("train"), process)
        optimizers = build_optimizers(config, model, STEPS)
        checkpoints = Checkpoints(LocalStore(runs / name))
        progress = checkpoints.load("latest", RunTensors(model, optimizers)) if resume else RunState()
        Trainer(RunParts(config, process, model, optimizers, loader, checkpoints, progress)).train()
        result[name] = {key: value.clone() for key, value in model.dense_weights().items()}
        if name != "unbounded":  # which row of a table an id has depends on the processes
            result[name] |= {key: whole(value) for key, value in model.table_weights().items()}
    return result


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    write(folder, [[60, 7], [45, 30]], observed_only=True)
    return folder


def test_the_model_does_not_depend_on_processes_and_stops(shop: Path, tmp_path: Path) -> None:
    """Two processes go on, in the second epoch, with what one began."""
    (alone,) = run_processes(1, trained, shop, tmp_path / "alone", STEPS)
    assert {name: len(weights) > 10 for name, weights in alone.items()} == dict.fromkeys(NEGATIVES, True)
    run_processes(1, trained, shop, tmp_path / "parts", STEPS - 3)
    found = run_processes(2, trained, shop, tmp_path / "parts", STEPS, True)[0]
    for name, weights in alone.items():
        assert found[name].keys() == weights.keys()
        for key, value in weights.items():
            np.testing.assert_allclose(found[name][key], value, rtol=1e-4, atol=2e-6, err_msg=f"{name}, {key}")


def test_a_run(shop: Path, tmp_path: Path) -> None:
    place = commands.write_config(tmp_path / "run.yaml", content(shop, NEGATIVES["popularity"]))
    done = commands.run("train", place, "--output", tmp_path / "run", processes=2)
    assert done.returncode == 0, done.stderr
    assert "16 rows and up to 3 drawn for each, on 2 process(es)" in done.stdout
    losses = commands.losses(tmp_path / "run" / "metrics.jsonl")
    assert losses[len(losses)]["loss/click"] < losses[1]["loss/click"] - 0.05


def test_the_first_loss_is_that_of_the_rate(shop: Path) -> None:
    """All rows have a click and 3 negatives: what the model starts from is log(1 / 3)."""
    spec = open_dataset(str(shop)).spec
    means = {"click": 1.0, "buy": 0.3, "seconds": 2.0}
    labels = [label.model_copy(update={"mean": means[label.name]}) for label in spec.labels]
    tasks = RunConfig.model_validate(
        {
            **content(shop, NEGATIVES["popularity"]),
            "tasks": [
                {"name": "click"},
                {"name": "buy"},
                {"name": "after", "label": "buy", "only_where": "click"},
                {"name": "seconds", "loss": "mean_squared_error"},
            ],
        }
    ).tasks
    click, buy, after, seconds = starting_logits(tasks, spec.model_copy(update={"labels": labels}), drawn=3)
    assert click == pytest.approx(math.log(1 / 3))
    assert buy == pytest.approx(math.log(0.075 / 0.925))
    assert after == pytest.approx(math.log(0.3 / 0.7))
    assert seconds == 2.0


def items_of_round(rank: int, folder: Path) -> set[int]:
    """The items drawn when only the first file is new."""
    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    config = RunConfig.model_validate(content(folder, NEGATIVES["popularity"], growing=True))
    whole = open_dataset(str(folder)).split("train")
    loader = training_loader(config, Split("train", whole.spec, whole.files[:1]), process)
    rows = [row for batch in loader.epoch(0) for row in actual(batch)]
    return {item for place, row in enumerate(rows) if place % 4 for item in row["item"]}


def test_growing_data_draw_from_the_files_of_the_round(tmp_path: Path) -> None:
    rows = write(tmp_path / "shop", [[14], [120]], observed_only=True)
    first = {row["item"] for row in rows[:14] if row["item"]}
    assert len({row["item"] for row in rows[14:]} - first) > 5
    parts = run_processes(2, items_of_round, tmp_path / "shop")
    assert set().union(*parts) == first


def test_evaluation_draws_nothing(shop: Path) -> None:
    dataset = open_dataset(str(shop))
    config = RunConfig.model_validate(content(shop, NEGATIVES["popularity"]))
    loader = make_loader(config, dataset, "train", Process(0, 1, torch.device("cpu")))
    assert {batch.size for batch in loader.epoch(0)} == {16}
    assert config.data.training_rows == 64


def test_other_negatives_do_not_resume(shop: Path, tmp_path: Path) -> None:
    config = RunConfig.model_validate(content(shop, NEGATIVES["popularity"]))
    progress = RunState(data=json.loads(json.dumps(data_order(config))))
    check_same_data(progress, config, RunFolder(LocalStore(tmp_path)))
    for other in (None, NEGATIVES["in_batch"]):
        changed = RunConfig.model_validate(content(shop, other))
        with pytest.raises(UserError, match=r"data\.negatives was .* other rows would be drawn; set it back"):
            check_same_data(progress, changed, RunFolder(LocalStore(tmp_path)))
