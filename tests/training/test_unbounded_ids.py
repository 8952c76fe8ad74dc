"""Ids without a bound in runs: any plan, any number of processes, evictions, checkpoints, steps that are skipped."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import hashed, synthetic
from tests.embeddings.two_phase_model import whole
from tests.processes import run_processes

FEW: dict[str, object] = {"user": {"rows": 41, "eviction": "lru"}, "item": 150}
"""Less rows than ids: 60 users, 200 items."""
PLANS: dict[str, dict[str, Any]] = {
    "table_wise": {"default": "table_wise"},
    "row_wise": {"default": "row_wise"},
    "grid_shard": {"default": "grid_shard", "processes_per_host": 2},
    "mixture": {"default": "table_wise", "tables": {"item": "column_wise", "user": "data_parallel"}},
}
CLIPPY = {"sparse": {"name": "clippy_rowwise_adagrad", "learning_rate": 0.5}}


class Run:
    """A run on the processes at hand, step by step."""

    def __init__(self, rank: int, data: Path, unbounded: dict[str, object], plan: str, **changes: object) -> None:
        import torch.distributed as dist

        from dlrm_mtl.checkpoint.state import RunState
        from dlrm_mtl.config.run import RunConfig
        from dlrm_mtl.core.processes import Process
        from dlrm_mtl.data.dataset import open_dataset
        from dlrm_mtl.training.build import build_model, build_optimizers, build_step
        from dlrm_mtl.training.loaders import make_loader

        process = Process(rank, dist.get_world_size(), torch.device("cpu"))
        content = hashed.config(data, unbounded, sharding=PLANS[plan], **{"optimizer": CLIPPY, **changes})
        self.config = RunConfig.model_validate(content)
        dataset = open_dataset(str(data))
        self.model = build_model(self.config, dataset.spec, process)
        self.optimizers = build_optimizers(self.config, self.model, 20)
        self.loader = make_loader(self.config, dataset, "train", process)
        self.validation = make_loader(self.config, dataset, "validation", process)
        self.take = build_step(self.config, process, self.model, self.optimizers)
        self.progress = RunState()
        self.losses: list[list[float]] = []
        self.evicted = {"user": 0.0, "item": 0.0}

    def train(self, until: int) -> None:
        """Take steps."""
        import torch.distributed as dist

        self.model.module.train()
        while self.progress.step < until:
            epoch, start = divmod(self.progress.step, self.loader.steps_per_epoch)
            with self.loader.epoch(epoch, start) as batches:
                for batch in islice(batches, until - self.progress.step):
                    parts, report = self.take([batch], self.progress.step, epoch)
                    assert not report.skipped
                    dist.all_reduce(parts)
                    self.losses.append(parts.tolist())
                    self.progress.step += 1
                    for name in self.evicted:
                        self.evicted[name] += self.take.figures().get(f"ids/{name}/evicted", 0.0)
        self.progress.steps_applied = self.optimizers.sparse.steps

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds, whole, on the first process."""
        from dlrm_mtl.checkpoint.tensors import flatten
        from dlrm_mtl.training.tensors import RunTensors

        found = flatten(RunTensors(self.model, self.optimizers).tensors())
        return {key: whole(found[key]) for key in sorted(found)}

    def evaluate(self) -> dict[str, float]:
        """The metrics on the validation split."""
        from dlrm_mtl.training.evaluation import evaluate

        return evaluate(self.model, self.validation, self.config.tasks, torch.device("cpu")).metrics


def differences(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """The tensors that are not equal bit by bit; those that lie elsewhere are None."""
    assert left.keys() == right.keys()
    return [
        key
        for key, value in left.items()
        if (value is None) != (right[key] is None) or (value is not None and not torch.equal(value, right[key]))
    ]


def visit(rank: int, data: Path, runs: Path, plan: str, load: bool) -> dict[str, Any]:
    """Take 12 steps, with a checkpoint after step 6, or those from the checkpoint on."""
    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.storage.run_store import LocalStore
    from dlrm_mtl.training.tensors import RunTensors

    run = Run(rank, data, FEW, plan)
    if load:
        run.progress = Checkpoints(LocalStore(runs)).load("latest", RunTensors(run.model, run.optimizers))
        assert run.progress.step == 6
    else:
        run.train(6)
        Checkpoints(LocalStore(runs)).save(RunTensors(run.model, run.optimizers), run.progress)
    run.train(12)
    before = run.tensors()
    metrics = run.evaluate()
    assert differences(run.tensors(), before) == [], "evaluation changed something"
    return {"losses": run.losses, "tensors": before, "evicted": run.evicted, "metrics": metrics}


def stop_and_resume(rank: int, data: Path, runs: Path) -> dict[str, Any]:
    """A run, and the same one resumed half-way, bit by bit the same."""
    first = visit(rank, data, runs, "mixture", False)
    again = visit(rank, data, runs, "mixture", True)
    assert again["losses"] == first["losses"][6:]
    assert differences(again["tensors"], first["tensors"]) == []
    assert again["metrics"] == first["metrics"]
    return first


def test_any_plan_any_number_of_processes_and_resuming(tmp_path: Path) -> None:
    data, runs = hashed.write_dataset(tmp_path / "data"), tmp_path / "runs"
    first = run_processes(2, stop_and_resume, data, runs)[0]
    assert min(first["evicted"].values()) > 20
    for processes, plan, load in [(4, "grid_shard", True), (1, "table_wise", False)]:
        other = run_processes(processes, visit, data, runs if load else tmp_path / "other", plan, load)[0]
        np.testing.assert_allclose(other["losses"], first["losses"][6 if load else 0 :], rtol=1e-5)
        for key, value in first["tensors"].items():
            if key.startswith("ids."):
                assert torch.equal(other["tensors"][key], value), (plan, key)
            elif key.startswith("tables."):
                torch.testing.assert_close(other["tensors"][key], value, rtol=1e-4, atol=1e-6)
        assert other["metrics"] == pytest.approx(first["metrics"], rel=1e-4)


def few_and_many_rows(rank: int, data: Path) -> None:
    few = Run(rank, data, {"user": 100, "item": 400}, "table_wise")
    many = Run(rank, data, {"user": 5000, "item": {"rows": 3000, "eviction": "lfu"}}, "table_wise")
    for run in (few, many):
        run.train(12)
        assert not any(run.evicted.values())
    np.testing.assert_allclose(few.losses, many.losses, rtol=1e-6)


def test_the_number_of_rows_does_not_matter_where_none_is_short(tmp_path: Path) -> None:
    run_processes(1, few_and_many_rows, hashed.write_dataset(tmp_path / "data"))


def newcomers(rank: int, data: Path, plan: str, optimizer: str) -> dict[str, Any]:
    """Train; let new users evict others, and take that back."""
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    run = Run(rank, data, FEW, plan, optimizer={"sparse": {"name": optimizer}})
    run.train(6)
    before = run.tensors()
    ids = torch.arange(10) * 1_000_003 + 10 * rank * 1_000_003 + 7
    keys = ["user", "item", "tags", "history"]
    lengths = torch.tensor([1] * 10 + [0] * 30, dtype=torch.int32)
    sparse = KeyedJaggedTensor(keys=keys, values=ids, lengths=lengths, stride=10)
    unknown = run.model.ids(sparse).values()
    run.model.ids.begin(6)
    rows = run.model.ids(sparse).values()
    after = run.tensors()
    run.model.ids.end(keep=False)
    assert differences(run.tensors(), before) == [], "not everything was taken back"
    return {"before": before, "after": after, "ids": ids, "rows": rows, "unknown": unknown}


@pytest.mark.parametrize(
    ("plan", "optimizer", "initial"),
    [("mixture", "rowwise_adam", 0.0), ("row_wise", "clippy_rowwise_adagrad", 0.1)],
)
def test_rows_that_change_hands_begin_anew(tmp_path: Path, plan: str, optimizer: str, initial: float) -> None:
    from dlrm_mtl.embeddings.unbounded.hashing import initial_rows

    data = hashed.write_dataset(tmp_path / "data", rows=500)
    results = run_processes(2, newcomers, data, plan, optimizer)
    before, after = results[0]["before"], results[0]["after"]
    ids, rows = (torch.cat([result[key] for result in results]) for key in ("ids", "rows"))
    assert not any(result["unknown"].any() for result in results)
    assert len(set(rows.tolist())) == 20
    assert (rows > 0).all()
    assert (before["ids.user.last_used"][rows] > 0).any(), "nobody was evicted"
    assert torch.equal(after["ids.user.ids"][rows], ids)
    changed = {"tables.user", "table_state.user.accumulator", "table_state.user.first_moment"}
    others = torch.ones(41, dtype=torch.bool).index_fill(0, rows, False)
    for key, value in before.items():
        if key in changed:
            assert torch.equal(after[key][others], value[others]), key
            assert not torch.equal(after[key][rows], value[rows]), key
        elif not key.startswith("ids.user."):
            assert torch.equal(after[key], value), key
    assert torch.equal(after["tables.user"][rows], initial_rows(ids, "3/user", 0.1, 0, 8))
    assert (after["table_state.user.accumulator"][rows] == initial).all()
    if optimizer == "rowwise_adam":
        assert not after["table_state.user.first_moment"][rows].any()


def poisoned(rank: int, data: Path, balancing: dict[str, Any]) -> None:
    run = Run(rank, data, FEW, "row_wise", balancing=balancing)
    run.train(4)
    before = run.tensors()
    with run.loader.epoch(0, 4) as batches:
        batch = next(iter(batches))
        good = batch.dense.clone()
        if rank == 1:
            batch.dense[3, 0] = float("nan")
        _, report = run.take([batch], 4, 0)
        assert report.skipped
        assert run.take.figures()["ids/user/evicted"] > 0
        assert differences(run.tensors(), before) == [], "a step that was skipped changed something"
        batch.dense.copy_(good)
        _, report = run.take([batch], 4, 0)
        assert not report.skipped
        assert "ids.user.ids" in differences(run.tensors(), before) or rank


@pytest.mark.parametrize("balancing", [{"name": "none"}, {"name": "famo"}], ids=lambda value: value["name"])
def test_a_skipped_step_gives_no_rows(tmp_path: Path, balancing: dict[str, Any]) -> None:
    run_processes(2, poisoned, hashed.write_dataset(tmp_path / "data", rows=500), balancing)


def learn(rank: int, data: Path, unbounded: dict[str, object]) -> tuple[float, float]:
    """The clicks' AUC on the validation split, and how many users lost their row."""
    run = Run(rank, data, unbounded, "table_wise", optimizer={"sparse": {"name": "rowwise_adagrad"}})
    run.train(2 * run.loader.steps_per_epoch)
    if unbounded:
        batch = next(iter(run.validation.epoch(0)))
        place = batch.sparse.keys().index("user")
        users = slice(*batch.sparse.offset_per_key()[place : place + 2])
        run.model.module.eval()
        scores = []
        for number in (0, 3 << 60, -(3 << 60)):
            batch.sparse.values()[users] = number
            with torch.no_grad():
                scores.append(run.model.module(batch))
        assert torch.equal(scores[0], scores[1]), "a user whom nobody has seen is not like the unknown one"
        assert torch.equal(scores[0], scores[2])
    return run.evaluate()["click/auc"], run.evicted["user"]


def learn_each(rank: int, numbered: Path, scattered: Path) -> list[tuple[float, float]]:
    ample: dict[str, object] = {"user": 300, "item": 1000}
    return [learn(rank, numbered, {}), learn(rank, scattered, ample), learn(rank, scattered, FEW)]


def test_runs_learn(tmp_path: Path) -> None:
    numbered = synthetic.write_dataset(tmp_path / "numbered", rows=4000)
    scattered = hashed.write_dataset(tmp_path / "scattered", rows=4000)
    ((bounded, _), (ample, nobody), (short, many)) = run_processes(1, learn_each, numbered, scattered)[0]
    assert bounded > 0.68
    assert ample == pytest.approx(bounded, abs=0.02)
    assert nobody == 0
    assert many > 100
    assert 0.54 < short < ample


def other_rows(rank: int, data: Path, runs: Path) -> None:
    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.core.errors import UserError
    from dlrm_mtl.storage.run_store import LocalStore
    from dlrm_mtl.training.tensors import RunTensors

    run = Run(rank, data, FEW, "table_wise")
    run.train(1)
    Checkpoints(LocalStore(runs)).save(RunTensors(run.model, run.optimizers), run.progress)
    other = Run(rank, data, {**FEW, "user": 55}, "table_wise")
    with pytest.raises(UserError, match=r"has the size \[41.*\] and the configuration wants \[55"):
        Checkpoints(LocalStore(runs)).load("latest", RunTensors(other.model, other.optimizers))


def test_a_checkpoint_with_another_number_of_rows(tmp_path: Path) -> None:
    run_processes(1, other_rows, hashed.write_dataset(tmp_path / "data", rows=200), tmp_path / "runs")
