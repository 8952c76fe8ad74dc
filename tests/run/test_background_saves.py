"""Checkpoints written in the background: they hold the state at their step, appear whole, and survive kills."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrm_mtl.checkpoint import copies
from dlrm_mtl.checkpoint import folder as module
from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.storage.run_store import LocalStore
from tests import commands
from tests.processes import run_processes
from tests.run.homes import write_home

TRAINING = {"max_steps": 24, "epochs": 10, "log_every": 1, "checkpoint_every": 2, "evaluate_every": 7}


class Tensors:
    """A tensor of its own on every process."""

    def __init__(self, rank: int) -> None:
        self.tensor = torch.zeros(300_000)
        self.rank = rank

    def prepare_load(self) -> None: ...

    def tensors(self) -> dict[str, Any]:
        return {f"part_{self.rank}": self.tensor, "scalar": torch.tensor(3.0)}

    def loaded(self, state: RunState) -> None: ...


def go_on_while_saving(rank: int, folder: str) -> list[bool]:
    """Save, change the tensors at once, and let the last process write only when the file ``go`` is there."""
    tensors, state, go = Tensors(rank), RunState(step=1), Path(folder, "go")
    checkpoints = Checkpoints(LocalStore(Path(folder, "run")))
    write = module.write_files

    def late(*arguments: Any) -> Any:
        while rank == 1 and not go.exists():
            time.sleep(0.01)
        return write(*arguments)

    module.write_files = late
    there = Path(folder, "run", "checkpoints", "step_00000001")
    seen = []
    assert checkpoints.save(tensors, state, background=True) is None
    for step in range(2, 200):
        tensors.tensor += 1
        state.step = step
        done = checkpoints.poll()
        seen.append(there.is_dir())
        if step == 20 and rank == 0:
            go.touch()
        if done is not None:
            assert done.step == 1
            break
        assert step > 20 or not seen[-1]
        time.sleep(0.01)
    else:
        checkpoints.finish()
    assert checkpoints.poll() is None
    checkpoints.save(tensors, RunState(step=300), background=True)  # in the same memory
    tensors.tensor.fill_(-1)
    checkpoints.finish()
    module.write_files = write
    checkpoints.load("step_1", tensors)
    first = bool((tensors.tensor == 0).all())
    checkpoints.load("latest", tensors)
    return [first, bool((tensors.tensor > 0).all())]


def test_what_is_saved_is_the_state_at_its_step(tmp_path: Path) -> None:
    assert run_processes(2, go_on_while_saving, str(tmp_path)) == [[True, True], [True, True]]


def save_without_memory(rank: int, folder: str) -> int | None:
    if rank == 1:
        copies.available_bytes = lambda: 0
    saved = Checkpoints(LocalStore(Path(folder))).save(Tensors(rank), RunState(step=1), background=True)
    return saved.step if saved else None


def test_training_waits_where_copies_do_not_fit(tmp_path: Path) -> None:
    assert run_processes(2, save_without_memory, str(tmp_path)) == [1, 1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a configuration, and a run ``whole`` that waited for each checkpoint."""
    return write_home(tmp_path_factory.mktemp("home"), TRAINING, 64, "--set", "training.async_checkpoints=false")


def last_tensors(run: Path) -> dict[str, Any]:
    """Every stored part of the last checkpoint by name and offset, as the checksum of its blocks' checksums."""
    index = json.loads((run / "checkpoints" / "step_00000024" / "index.json").read_text())
    return {
        f"{name} {chunk['offset']}": chunk["sha256"]
        for name, tensor in index["tensors"].items()
        for chunk in tensor["chunks"]
    }


def check_the_same(run: Path, whole: Path) -> None:
    assert last_tensors(run) == last_tensors(whole)
    assert commands.losses(run / "metrics.jsonl") == commands.losses(whole / "metrics.jsonl")
    assert (run / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    for name in ("latest", "best"):
        assert (run / "checkpoints" / name).read_text() == (whole / "checkpoints" / name).read_text()
    names = [sorted(os.listdir(each / "checkpoints")) for each in (run, whole)]
    assert names[0] == names[1]


def test_the_same_model_as_with_waiting(home: Path, tmp_path: Path) -> None:
    done = commands.run("train", home / "run.yaml", "--output", tmp_path / "run", processes=2)
    assert done.returncode == 0, done.stderr
    check_the_same(tmp_path / "run", home / "whole")


def kill_in_saves(home: Path, run: Path, kills: int, seed: int) -> None:
    """Kill everything a moment after a checkpoint is begun, again and again; then let the run end."""
    choose = random.Random(seed)
    for _ in range(kills):
        process = commands.start(
            "train", home / "run.yaml", "--output", run, "--resume", processes=2, log=run.with_suffix(".log")
        )
        before, wanted, begun = (
            set(os.listdir(run / "checkpoints")) if run.exists() else set(),
            choose.randint(1, 3),
            set(),
        )
        while process.poll() is None and len(begun) < wanted:
            begun |= {path.name.removesuffix(".tmp") for path in (run / "checkpoints").glob("step_*")} - before
        time.sleep(choose.random() * 0.03)
        commands.kill_tree(process)
        process.wait()
    done = commands.run("train", home / "run.yaml", "--output", run, "--resume", processes=2)
    assert done.returncode == 0, done.stderr


def test_kills_in_saves(home: Path, tmp_path: Path) -> None:
    kill_in_saves(home, tmp_path / "run", 2, seed=1)
    check_the_same(tmp_path / "run", home / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
def test_many_kills_in_saves(home: Path, tmp_path: Path, seed: int) -> None:
    kill_in_saves(home, tmp_path / "run", 5, seed)
    check_the_same(tmp_path / "run", home / "whole")
