"""Checkpoints written under any plan load under any other, weights and optimizer state alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests import synthetic
from tests.embeddings.two_phase_model import whole
from tests.processes import run_processes

PLANS: dict[str, dict[str, Any]] = {
    "table_wise": {"default": "table_wise"},
    "row_wise": {"default": "row_wise"},
    "column_wise": {"default": "column_wise"},
    "data_parallel": {"default": "data_parallel"},
    "grid_shard": {"default": "grid_shard", "processes_per_host": 2},
    "mixture": {"default": "table_wise", "tables": {"item": "column_wise", "user": "data_parallel"}},
}


def visit(rank: int, data: Path, runs: Path, optimizer: str, plan: str, load: str | None) -> dict[str, Tensor | None]:
    """Load a checkpoint, or take some steps; save one; return everything in it, whole, on the first process."""
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
    seed = {"seed": 9} if load else {}
    content = synthetic.config(data, sharding=PLANS[plan], optimizer={"sparse": {"name": optimizer}}, **seed)
    config = RunConfig.model_validate(content)
    dataset = open_dataset(str(data))
    model = build_model(config, dataset.spec, process)
    optimizers = build_optimizers(config, model, 4)
    progress = RunState()
    if load:
        progress = Checkpoints(LocalStore(runs / load)).load("latest", RunTensors(model, optimizers))
        assert progress.step == progress.steps_applied == optimizers.sparse.steps == 3
        for local in optimizers.sparse.tables:  # parts that hold later columns are no parts of the checkpoint
            assert (next(iter(local.states.values())) > 0).any()
    else:
        loader = make_loader(config, dataset, "train", process)
        trainer = Trainer(RunParts(config, process, model, optimizers, loader, Checkpoints(LocalStore(runs)), progress))
        with loader.epoch(0) as batches:
            for _ in range(3):
                trainer.step([next(batches)], progress.step, 0)
                progress.step += 1
        progress.steps_applied = optimizers.sparse.steps
    Checkpoints(LocalStore(runs / f"{plan}-{process.world_size}")).save(RunTensors(model, optimizers), progress)
    tensors = {f"weights/{name}": whole(value) for name, value in model.table_weights().items()}
    for name, state in optimizers.table_state().items():
        tensors.update({f"{key}/{name}": whole(value) for key, value in state.items()})
    tensors.update({f"dense/{name}": value.clone() for name, value in model.dense_weights().items()})
    for name, state in optimizers.dense_state().items():
        tensors.update({f"dense_{key}/{name}": value.clone() for key, value in state.items()})
    return tensors


def test_what_an_attempt_that_was_killed_has_left_is_no_reason_to_remove_the_latest(tmp_path: Path) -> None:
    """It wrote step 30 and died before a pointer named it; the next attempt went on from step 10 and came to 20."""
    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.core.processes import process_group
    from dlrm_mtl.storage.run_store import LocalStore

    for step in (5, 10, 20, 30):
        (tmp_path / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step_{step:08d}" / "progress.json").touch()
    with process_group():
        Checkpoints(LocalStore(tmp_path), keep=1).settle(RunState(step=20, best_step=5))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best",
        "latest",
        "step_00000005",
        "step_00000020",
    ]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000020"
    assert (tmp_path / "checkpoints" / "best").read_text() == "step_00000005"


def test_mixtures_and_sharding_types_load_one_after_the_other(tmp_path: Path) -> None:
    optimizer = "clippy_rowwise_adagrad"
    data, runs = synthetic.write_dataset(tmp_path / "data", rows=300), tmp_path / "runs"
    first = run_processes(4, visit, data, runs, optimizer, "grid_shard", None)[0]
    assert any(key.startswith("accumulator/") for key in first)
    before = "grid_shard-4"
    for plan, processes in [
        ("table_wise", 2),
        ("column_wise", 4),
        ("data_parallel", 2),
        ("mixture", 2),
        ("row_wise", 1),
    ]:
        now = run_processes(processes, visit, data, runs, optimizer, plan, before)[0]
        assert now.keys() == first.keys(), plan
        for key, value in first.items():
            assert torch.equal(now[key], value), (plan, key)
        before = f"{plan}-{processes}"
