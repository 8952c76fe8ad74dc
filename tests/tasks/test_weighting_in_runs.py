"""Learned and dynamic task weights in the trainer: on one and two processes, and over a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_mtl.config.run import RunConfig
from tests import synthetic
from tests.processes import run_processes

STEPS = 18
"""Of 5 an epoch: dynamic weights move from step 10 on."""
CUT = 12
"""Where a run is saved and another one goes on, in the middle of an epoch."""
WEIGHTINGS: dict[str, Any] = {
    "fixed": "fixed",
    "uncertainty": "uncertainty",
    "dwa": {"name": "dwa", "temperature": 0.05},
}


def train(rank: int, dataset: Path, checkpoints: Path, stop: int, resume: bool) -> dict[str, list[list[float]]]:
    """Losses and task weights by step with each weighting, up to ``stop``, where a checkpoint is written."""
    import torch
    import torch.distributed as dist

    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.storage.run_store import LocalStore
    from dlrm_mtl.tasks.weighting import DynamicWeightAverage, UncertaintyWeighting
    from dlrm_mtl.training.build import build_model, build_optimizers
    from dlrm_mtl.training.loaders import make_loader
    from dlrm_mtl.training.loop import RunParts, Trainer
    from dlrm_mtl.training.tensors import RunTensors

    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    data = open_dataset(str(dataset))
    result: dict[str, list[list[float]]] = {}
    for name, weighting in WEIGHTINGS.items():
        dense = {"name": "adam", "learning_rate": 0.01}
        config = RunConfig.model_validate(
            synthetic.config(dataset, task_weighting=weighting, optimizer={"dense": dense}, training={"epochs": 4})
        )
        model = build_model(config, data.spec, process)
        optimizers = build_optimizers(config, model, STEPS)
        loader = make_loader(config, data, "train", process)
        folder = Checkpoints(LocalStore(checkpoints / name))
        progress = folder.load("latest", RunTensors(model, optimizers)) if resume else RunState()
        trainer = Trainer(RunParts(config, process, model, optimizers, loader, folder, progress))
        model.module.train()
        values = result[name] = []
        while progress.step < stop:
            epoch, start = divmod(progress.step, loader.steps_per_epoch)
            for batch in loader.epoch(epoch, start):
                parts, _ = trainer.step([batch], progress.step, epoch)
                dist.all_reduce(parts)
                weights = []
                if isinstance(model.weighting, DynamicWeightAverage):
                    weights = model.weighting.weights.tolist()
                elif isinstance(model.weighting, UncertaintyWeighting):
                    weights = model.weighting.log_variances.tolist()
                values.append([*parts.tolist(), *weights])
                progress.step, progress.steps_applied = progress.step + 1, optimizers.sparse.steps
                if progress.step == stop:
                    break
        if not resume:
            folder.save(RunTensors(model, optimizers), progress)
    return result


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=320)


def test_weights_are_the_same_on_any_number_of_processes_and_after_resuming(dataset: Path, tmp_path: Path) -> None:
    (whole,) = run_processes(1, train, dataset, tmp_path / "one", STEPS, False)
    dynamic, learned = np.array(whole["dwa"])[:, 2:], np.array(whole["uncertainty"])[:, 2:]
    assert (dynamic[:10] == 1).all()
    assert (np.abs(dynamic[11:] - 1) > 1e-3).all(), "weights differ from the third epoch on"
    assert (learned[-1] > -0.45).all(), "they go towards the logarithms of the losses, near log 0.69"
    assert np.array(whole["dwa"])[10, 0] == np.array(whole["fixed"])[10, 0]
    assert np.array(whole["dwa"])[11, 0] != np.array(whole["fixed"])[11, 0]
    for first in run_processes(2, train, dataset, tmp_path / "two", CUT, False):
        for name in WEIGHTINGS:
            np.testing.assert_allclose(first[name], whole[name][:CUT], rtol=1e-5, err_msg=name)
    (rest,) = run_processes(1, train, dataset, tmp_path / "two", STEPS, True)
    for name in WEIGHTINGS:
        np.testing.assert_allclose(rest[name], whole[name][CUT:], rtol=1e-5, err_msg=name)
