"""Models, ESMM and flattened features in runs: the same losses under every plan, and after resuming under another."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import synthetic
from tests.processes import run_processes

STEPS, SAVED = 6, 3
PAIR = {"user": "user", "item": "item", "dim": 8}
RANKER = {
    "multitask": {"name": "mmoe", "experts": 2, "layers": [8]},
    "tower": {"layers": []},
    "interaction": {"name": "concat"},
}
FLATTENED = {"history": {"pooling": "flattened", "length": 3}}
PLANS: dict[str, dict[str, Any]] = {
    "table_wise": {"default": "table_wise"},
    "row_wise": {"default": "row_wise"},
    "column_wise": {"default": "column_wise"},
    "data_parallel": {"default": "data_parallel"},
}
CASES: dict[str, dict[str, Any]] = {
    "logistic_regression": {"model": {"name": "logistic_regression"}},
    "ncf": {
        "model": {
            "name": "ncf",
            "embeddings": {"dim": 8, "init_std": 0.1},
            "bottom": {"layers": [8]},
            "tower": {"layers": [8]},
        }
    },
    "neumf": {"model": {"name": "neumf", **PAIR, "init_std": 0.1, "deep": {"layers": [8]}, "tower": {"layers": []}}},
    "multitask_net": {
        "model": {"name": "multitask_net", **PAIR, "regression": {"layers": [8]}},
        "tasks": [{"name": "click", "loss": "bpr"}, {"name": "buy"}],
    },
    "multitask_net separate": {
        "model": {"name": "multitask_net", **PAIR, "embeddings": "separate", "regression": {"layers": [8]}},
        "tasks": [
            {"name": "click", "loss": "bpr_probability"},
            {"name": "bought", "label": "buy", "loss": {"name": "softmax_cross_entropy", "negatives": 3}},
            {"name": "buy"},
        ],
    },
    "esmm": {
        "model": {"embeddings": {"dim": 8, "init_std": 0.1}, **RANKER},
        "tasks": [
            {"name": "click"},
            {"name": "buy_after", "label": "buy", "only_where": "click", "weight": 0},
            {"name": "buy", "product_of": ["click", "buy_after"]},
        ],
    },
    "flattened": {
        "model": {"embeddings": {"dim": 8, "init_std": 0.1, "features": FLATTENED}, "dense_norm": "layer", **RANKER}
    },
}


def train(rank: int, folder: Path, runs: Path, case: str, plan: str, load: bool) -> list[list[float]]:
    """The losses of the first steps; or, from the checkpoint of another plan on, of the others."""
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
    from dlrm_mtl.training.tensors import RunTensors

    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    dataset = open_dataset(str(folder))
    rate = {
        "sparse": {"name": "rowwise_adagrad", "learning_rate": 0.2},
        "dense": {"name": "adam", "learning_rate": 0.02},
    }
    config = RunConfig.model_validate(synthetic.config(folder, sharding=PLANS[plan], optimizer=rate, **CASES[case]))
    model = build_model(config, dataset.spec, process)
    optimizers = build_optimizers(config, model, STEPS)
    checkpoints, progress = Checkpoints(LocalStore(runs / case)), RunState()
    if load:
        progress = checkpoints.load("latest", RunTensors(model, optimizers))
    loader = make_loader(config, dataset, "train", process)
    trainer = Trainer(RunParts(config, process, model, optimizers, loader, checkpoints, progress))
    model.module.train()
    values = []
    with loader.epoch(0, progress.step) as batches:
        for batch in itertools.islice(batches, STEPS - progress.step):
            parts, _ = trainer.step([batch], progress.step, 0)
            dist.all_reduce(parts)
            values.append(parts.tolist())
            progress.step += 1
            progress.steps_applied = optimizers.sparse.steps
            if process.world_size == 1 and progress.step == SAVED:
                checkpoints.save(RunTensors(model, optimizers), progress)
    return values


def losses(
    rank: int, folder: Path, runs: Path, plans: list[str], load: bool
) -> dict[tuple[str, str], list[list[float]]]:
    cases = [case for case in CASES if case != "multitask_net"]
    wanted = [(case, plan) for case in cases for plan in plans]
    if len(plans) > 1:
        wanted.append(("flattened", "table_wise"))
    return {(case, plan): train(rank, folder, runs, case, plan, load) for case, plan in wanted}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"))


def test_losses_do_not_depend_on_processes_or_plan(dataset: Path, tmp_path: Path) -> None:
    (alone,) = run_processes(1, losses, dataset, tmp_path, ["row_wise"], False)
    two = run_processes(2, losses, dataset, tmp_path, ["row_wise", "column_wise", "data_parallel"], False)[0]
    resumed = run_processes(2, losses, dataset, tmp_path, ["column_wise"], True)[0]
    for case in {case for case, _ in alone}:
        wanted = np.array(alone[case, "row_wise"])
        assert np.isfinite(wanted).all()
        assert (np.abs(wanted[-1] - wanted[0]) > 1e-4).all(), f"{case} moves in these steps"
        for plan in (plan for name, plan in two if name == case):
            np.testing.assert_allclose(two[case, plan], wanted, rtol=1e-5, atol=1e-7, err_msg=f"{case}, {plan}")
        np.testing.assert_allclose(resumed[case, "column_wise"], wanted[SAVED:], rtol=1e-5, atol=1e-7, err_msg=case)


def mistakes(rank: int, folder: Path) -> list[str]:
    """Error messages for plans that cannot hold the table of a flattened feature, and for other mistakes of a model."""
    import torch
    import torch.distributed as dist

    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.core.errors import UserError
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.training.build import build_model

    said = []
    for sharding in ({"default": "grid_shard"}, {"tables": {"item": "table_column_wise"}}):
        config = RunConfig.model_validate(synthetic.config(folder, sharding=sharding, **CASES["flattened"]))
        try:
            build_model(
                config, open_dataset(str(folder)).spec, Process(rank, dist.get_world_size(), torch.device("cpu"))
            )
        except UserError as error:
            said.append(str(error))
    return said


def test_plans_that_cannot_hold_flattened_features(dataset: Path) -> None:
    (said,) = run_processes(1, mistakes, dataset)
    possible = "under sharding.tables.item, choose one of column_wise, data_parallel, row_wise, table_wise."
    assert said == [
        f"sharding.default: grid_shard cannot hold table item, which serves a flattened feature; {possible}",
        f"sharding.tables.item: table_column_wise cannot hold table item, which serves a flattened feature; {possible}",
    ]


def ranked(rank: int, folder: Path) -> tuple[dict[str, float], Any]:
    """The metrics of an untrained model, and its weights, whole."""
    import torch
    import torch.distributed as dist

    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.training.build import build_model
    from dlrm_mtl.training.evaluation import evaluate
    from dlrm_mtl.training.loaders import make_loader
    from tests.embeddings.two_phase_model import whole

    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    dataset = open_dataset(str(folder))
    config = RunConfig.model_validate(synthetic.config(folder, sharding=PLANS["row_wise"], **CASES["multitask_net"]))
    model = build_model(config, dataset.spec, process)
    found = evaluate(model, make_loader(config, dataset, "test", process), config.tasks, process.device)
    return found.metrics, {name: whole(value) for name, value in model.table_weights().items()}


def test_all_items_are_ranked_in_evaluation(dataset: Path) -> None:
    """Against a literal ranking from the files and the model's weights, on one process and on two."""
    import pyarrow.parquet as pq

    (metrics, weights), *_ = run_processes(1, ranked, dataset)
    two = run_processes(2, ranked, dataset)
    assert two[0][0] == two[1][0] == pytest.approx(metrics, rel=1e-6, nan_ok=True)
    train, test = (pq.read_table(dataset / split).to_pylist() for split in ("train", "test"))
    scores = weights["user"] @ weights["item"].T + weights["bias_item"][:, 0]
    reciprocal, recalls, gains = [], [], []
    for user in sorted({row["user"] for row in test if row["user"] is not None and row["click"]}):
        targets = {row["item"] for row in test if row["user"] == user and row["click"]} - {0}
        seen = {row["item"] for row in train if row["user"] == user} - targets
        order = sorted(set(range(1, len(scores[0]))) - seen, key=lambda item: -float(scores[user, item]))
        ranks = [order.index(item) + 1 for item in targets]
        reciprocal.append(np.mean([1 / rank for rank in ranks]))
        recalls.append(np.mean([rank <= 20 for rank in ranks]))
        best = sum(1 / math.log2(1 + place) for place in range(1, min(len(ranks), 20) + 1))
        gains.append(sum(1 / math.log2(1 + rank) for rank in ranks if rank <= 20) / best)
    assert metrics["click/mrr"] == pytest.approx(np.mean(reciprocal))
    assert metrics["click/recall@20"] == pytest.approx(np.mean(recalls))
    assert metrics["click/ndcg@20"] == pytest.approx(np.mean(gains))
    assert metrics["mean/mrr"] == metrics["click/mrr"]
    assert "buy/mrr" not in metrics
