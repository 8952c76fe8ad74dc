"""Batches cut into pieces whose gradients are added up: the same training as in one piece."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_mtl.config.run import RunConfig
from tests import synthetic
from tests.processes import run_processes

STEPS = 8
MODEL = {
    "embeddings": {"dim": 8},
    "multitask": {"name": "mmoe", "experts": 3, "layers": [16]},
    "tower": {"layers": [8]},
}
"""Without dropout, whose masks are those of micro-batches."""
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "replicated": {"sharding": {"default": "data_parallel"}},
    "uncertainty": {"task_weighting": "uncertainty"},
    "metabalance": {"balancing": {"name": "metabalance", "target": "click"}},
    "gradnorm": {"balancing": {"name": "gradnorm"}},
    "at the features": {"balancing": {"name": "metabalance", "target": "click", "level": "representation"}},
    "penalty": {
        "model": {
            "embeddings": {"dim": 8},
            "multitask": {"name": "aitm", "layers": [8], "calibrator": 5.0},
            "tower": {"layers": []},
        },
        "balancing": {"name": "pcgrad", "seed": 5},
    },
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=420)


def trained(rank: int, folder: Path, pieces: int) -> dict[str, list[list[float]]]:
    """The losses of the first steps of every run, the last step of an epoch with fewer rows than the others included."""
    return {name: _losses(rank, folder, changes, pieces) for name, changes in RUNS.items()}


def _losses(rank: int, folder: Path, changes: dict[str, Any], pieces: int) -> list[list[float]]:
    import torch
    import torch.distributed as dist

    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.storage.run_store import LocalStore
    from dlrm_mtl.training.build import build_model, build_optimizers
    from dlrm_mtl.training.loaders import make_loader
    from dlrm_mtl.training.loop import RunParts, Trainer

    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    dataset = open_dataset(str(folder))
    changes = {"model": MODEL, "training": {"micro_batches": pieces}, **changes}
    config = RunConfig.model_validate(synthetic.config(folder, **changes))
    model = build_model(config, dataset.spec, process)
    optimizers = build_optimizers(config, model, STEPS)
    loader = make_loader(config, dataset, "train", process)
    trainer = Trainer(RunParts(config, process, model, optimizers, loader, Checkpoints(LocalStore(folder)), RunState()))
    assert trainer.steps_per_epoch < STEPS
    model.module.train()
    values: list[list[float]] = []
    for epoch in itertools.count():
        for batches, _ in trainer.steps_of(epoch, 0):
            parts, _ = trainer.step(batches, len(values), epoch)
            dist.all_reduce(parts)
            values.append(parts.tolist())
            if len(values) == STEPS:
                return values
    raise AssertionError


@pytest.fixture(scope="module")
def whole(dataset: Path) -> dict[str, list[list[float]]]:
    return run_processes(1, trained, dataset, 1)[0]


@pytest.mark.parametrize(("world_size", "pieces"), [(1, 4), (2, 2)])
def test_the_number_of_pieces_does_not_matter(
    dataset: Path, whole: dict[str, list[list[float]]], world_size: int, pieces: int
) -> None:
    results = run_processes(world_size, trained, dataset, pieces)
    assert all(result == results[0] for result in results)
    for name, values in results[0].items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-5, err_msg=name)


def test_a_batch_that_cannot_be_cut(dataset: Path) -> None:
    content = synthetic.config(dataset, training={"micro_batches": 7})
    with pytest.raises(
        ValueError, match=r"data.batch_size \d+ cannot be cut into training.micro_batches 7 .* set the batch"
    ):
        RunConfig.model_validate(content)
