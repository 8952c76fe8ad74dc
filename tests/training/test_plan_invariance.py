"""Promise 1: the same losses on 1, 2 and 4 processes and under every sharding type."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import synthetic
from tests.processes import run_processes

STEPS = 20
WORLD_SIZES = [1, 2, 4]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"sparse": {"name": "sgd", "learning_rate": 5.0}},
    "rowwise_adagrad": {"sparse": {"name": "rowwise_adagrad", "learning_rate": 0.1}},
    "rowwise_adam": {"sparse": {"name": "rowwise_adam", "learning_rate": 0.02}},
    "ftrl": {"sparse": {"name": "ftrl", "learning_rate": 0.2, "l1": 1e-4}},
    "adam": {"sparse": {"name": "adam", "learning_rate": 0.02}},
    "adam of all rows": {"sparse": {"name": "adam", "learning_rate": 0.02, "rows": "all"}},
    "adagrad": {"sparse": {"name": "adagrad", "learning_rate": 0.1}},
    "clippy pair": {
        "sparse": {"name": "clippy_rowwise_adagrad", "learning_rate": 1.0, "initial_accumulator_value": 1e-4},
        "dense": {"name": "clippy_adagrad", "learning_rate": 0.1},
    },
}
"""Learning rates high enough for the tables to matter within these steps, and for Clippy to clip."""
ALWAYS = ["data_parallel", "table_wise", "row_wise", "column_wise", "table_column_wise"]
TWO_HOSTS = ["table_row_wise", "grid_shard"]
MIXTURE = {"user": "row_wise", "item": {"type": "column_wise", "column_shards": 2}, "tags": "data_parallel"}


def first_losses(rank: int, folder: Path, **changes: object) -> list[list[float]]:
    """The losses of the first steps of a run, the same on every process."""
    import torch
    import torch.distributed as dist

    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.storage.run_store import LocalStore
    from dlrm_mtl.training.build import build_model, build_optimizers
    from dlrm_mtl.training.loaders import make_loader
    from dlrm_mtl.training.loop import RunParts, Trainer

    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    dataset = open_dataset(str(folder))
    config = RunConfig.model_validate(synthetic.config(folder, **changes))
    model = build_model(config, dataset.spec, process)
    optimizers = build_optimizers(config, model, STEPS)
    loader = make_loader(config, dataset, "train", process)
    trainer = Trainer(RunParts(config, process, model, optimizers, loader, Checkpoints(LocalStore(folder)), RunState()))
    model.module.train()
    values: list[list[float]] = []
    while len(values) < STEPS:
        epoch, start = divmod(len(values), loader.steps_per_epoch)
        with loader.epoch(epoch, start) as batches:
            for batch in itertools.islice(batches, STEPS - len(values)):
                parts, _ = trainer.step([batch], trainer.progress.step, epoch)
                dist.all_reduce(parts)
                values.append(parts.tolist())
                trainer.progress.step += 1
    return values


def losses(
    rank: int, folder: Path, shardings: dict[str, dict[str, Any]], pairs: list[tuple[str, str]]
) -> dict[tuple[str, str], list[list[float]]]:
    """The losses with each pair of an optimizer and a sharding, in one group of processes."""
    return {
        (optimizer, name): first_losses(rank, folder, sharding=shardings[name], optimizer=OPTIMIZERS[optimizer])
        for optimizer, name in pairs
    }


def shardings(world_size: int) -> dict[str, dict[str, Any]]:
    """Every sharding type, and a mixture; four processes stand for two hosts of two."""
    hosts = {"processes_per_host": 2} if world_size == 4 else {}
    types = ALWAYS + TWO_HOSTS
    result: dict[str, dict[str, Any]] = {name: {"default": name, **hosts} for name in types}
    result["mixture"] = {"default": "table_wise", "tables": MIXTURE, **hosts}
    result["auto"] = dict(hosts)
    return result


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(dataset: Path) -> dict[str, np.ndarray]:
    alone = [(optimizer, "one") for optimizer in OPTIMIZERS]
    (result,) = run_processes(1, losses, dataset, {"one": {"default": "table_wise"}}, alone)
    return {optimizer: np.array(values) for (optimizer, _), values in result.items()}


def pairs(world_size: int, every: bool) -> list[tuple[str, str]]:
    """Pairs of an optimizer and a sharding: all, or a third, so that each pair is tried on one of the numbers of processes."""
    found = []
    for row, optimizer in enumerate(OPTIMIZERS):
        for column, name in enumerate(shardings(world_size)):
            if every or (row + column) % 3 == WORLD_SIZES.index(world_size):
                found.append((optimizer, name))
    return found


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(
    "every", [pytest.param(False, id="a third"), pytest.param(True, id="all", marks=pytest.mark.slow)]
)
def test_losses_do_not_depend_on_processes_or_plan(
    dataset: Path, reference: dict[str, np.ndarray], world_size: int, every: bool
) -> None:
    chosen = pairs(world_size, every)
    results = run_processes(world_size, losses, dataset, shardings(world_size), chosen)
    assert all(result == results[0] for result in results)
    for (optimizer, name), values in results[0].items():
        wanted = reference[optimizer]
        assert wanted[-5:, 0].mean() < wanted[:5, 0].mean() - 0.003, f"{optimizer} learns something in these steps"
        np.testing.assert_allclose(values, wanted, rtol=1e-5, err_msg=f"{optimizer}, {name}, {world_size} processes")


def penalised(rank: int, folder: Path) -> list[list[float]]:
    """Losses with AITM, without and with its calibrator."""
    results = []
    for calibrator in (0.0, 5.0):
        multitask = {"name": "aitm", "layers": [8], "calibrator": calibrator}
        model = {"embeddings": {"dim": 8}, "multitask": multitask, "tower": {"layers": []}}
        results.append(first_losses(rank, folder, model=model))
    return results


def test_an_architecture_adds_to_the_loss(dataset: Path) -> None:
    (one, *_), (two, *_) = run_processes(1, penalised, dataset), run_processes(2, penalised, dataset)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    without, with_penalty = one
    assert without[0] == with_penalty[0], "before the first step"
    assert abs(without[-1][1] - with_penalty[-1][1]) > 1e-3
