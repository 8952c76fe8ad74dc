"""Checkpoints written under any sharding type and world size load under any other: weights, optimizer state and ids."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import hashed
from tests.embeddings.two_phase_model import SHARDING_TYPES, whole
from tests.processes import run_processes

WORLD_SIZES = [1, 2, 4, 8]
Plan = tuple[str, int]
"""Sharding type and world size."""
PLANS: list[Plan] = [(name, size) for size in WORLD_SIZES for name in SHARDING_TYPES]
PAIRS = [(written, loaded) for written in PLANS for loaded in PLANS]
FEW: dict[str, object] = {"user": {"rows": 41, "eviction": "lru"}, "item": {"rows": 150, "eviction": "lfu"}}
"""Fewer rows than there are users and items."""


class Run:
    """A run on the processes at hand."""

    def __init__(self, rank: int, data: Path, plan: Plan, seed: int) -> None:
        from dlrm_mtl.config.run import RunConfig
        from dlrm_mtl.core.processes import Process
        from dlrm_mtl.data.dataset import open_dataset
        from dlrm_mtl.training.build import build_model, build_optimizers
        from dlrm_mtl.training.tensors import RunTensors

        name, world_size = plan
        hosts = {"processes_per_host": 2} if world_size > 2 else {}
        content: dict[str, Any] = hashed.config(
            data,
            FEW,
            seed=seed,
            sharding={"default": name, **hosts},
            optimizer={"sparse": {"name": "rowwise_adam"}, "dense": {"name": "clippy_adagrad", "learning_rate": 0.1}},
        )
        content["data"]["lanes"] = 8
        content["model"]["embeddings"]["dim"] = 32
        self.process = Process(rank, world_size, torch.device("cpu"))
        self.config = RunConfig.model_validate(content)
        self.dataset = open_dataset(str(data))
        self.model = build_model(self.config, self.dataset.spec, self.process)
        self.optimizers = build_optimizers(self.config, self.model, 20)
        self.content = RunTensors(self.model, self.optimizers)

    def train(self, steps: int) -> None:
        """Take steps, in each of which ids get rows."""
        from dlrm_mtl.training.build import build_step
        from dlrm_mtl.training.loaders import make_loader

        step = build_step(self.config, self.process, self.model, self.optimizers)
        with make_loader(self.config, self.dataset, "train", self.process).epoch(0) as batches:
            for number in range(steps):
                _, report = step([next(batches)], number, 0)
                assert not report.skipped

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds, whole, on the first process."""
        from dlrm_mtl.checkpoint.tensors import flatten

        found = flatten(self.content.tensors())
        return {key: value for key in sorted(found) if (value := whole(found[key])) is not None}

    def spoil(self) -> None:
        """Overwrite everything that a checkpoint holds."""
        from dlrm_mtl.checkpoint.tensors import flatten

        for value in flatten(self.content.tensors()).values():
            for part in [shard.tensor for shard in value.local_shards()] if hasattr(value, "local_shards") else [value]:
                part.fill_(77)


def write(rank: int, home: Path, plans: list[Plan]) -> None:
    """Train under each of ``plans`` and save, with what was saved in a file beside."""
    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.storage.run_store import LocalStore

    for plan in plans:
        run = Run(rank, home / "data", plan, seed=3)
        run.train(4)
        held = run.tensors()
        state = RunState(step=4, steps_applied=run.optimizers.sparse.steps)
        Checkpoints(LocalStore(place(home, plan))).save(run.content, state)
        if rank == 0:
            torch.save(held, place(home, plan) / "held")


def load(rank: int, home: Path, pairs: list[tuple[Plan, Plan]]) -> list[str]:
    """Load under the second plan of each pair what was written under the first; what came out differently."""
    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.storage.run_store import LocalStore

    wrong = []
    for loaded in dict.fromkeys(after for _, after in pairs):
        run = Run(rank, home / "data", loaded, seed=9)
        for written in [before for before, after in pairs if after == loaded]:
            run.spoil()
            state = Checkpoints(LocalStore(place(home, written))).load("latest", run.content)
            found = run.tensors()
            if rank == 0:
                held = torch.load(place(home, written) / "held")
                keys = [key for key in held if key not in found or not torch.equal(found[key], held[key])]
                if keys or found.keys() != held.keys() or (state.step, run.optimizers.sparse.steps) != (4, 4):
                    wrong.append(f"{written} -> {loaded}: {keys}")
    return wrong


def place(home: Path, plan: Plan) -> Path:
    return home / f"{plan[0]}-{plan[1]}"


def some_pairs() -> list[tuple[Plan, Plan]]:
    """20 pairs of few plans, with each sharding type; without eight processes, which take long to start."""
    drawn = random.Random(3).sample(SHARDING_TYPES, 7)
    written, loaded = zip(drawn[:5], [4, 2, 1, 4, 2], strict=True), zip(drawn[3:], [4, 1, 2, 4], strict=True)
    return list(itertools.product(written, loaded))


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param(some_pairs(), id="20 pairs"),
        pytest.param(PAIRS, id="all pairs", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_a_checkpoint_of_any_plan_loads_under_any_other(tmp_path: Path, pairs: list[tuple[Plan, Plan]]) -> None:
    hashed.write_dataset(tmp_path / "data", rows=300)
    for size in WORLD_SIZES:
        plans = sorted({before for before, _ in pairs if before[1] == size})
        if plans:
            run_processes(size, write, tmp_path, plans, timeout=1800)
    wrong: list[str] = []
    for size in WORLD_SIZES:
        there = [(before, after) for before, after in pairs if after[1] == size]
        if there:
            wrong += run_processes(size, load, tmp_path, there, timeout=1800)[0]
    assert wrong == [], f"{len(wrong)} of {len(pairs)}"
