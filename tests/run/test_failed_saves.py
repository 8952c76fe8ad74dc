"""Checkpoints that cannot be saved: training goes on or stops as it is told, and the last good checkpoint stays."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrm_mtl.checkpoint.checkpoints import Checkpoints, SaveError
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.core.memory import size_text
from dlrm_mtl.storage.run_store import LocalStore
from tests import commands
from tests.processes import run_processes
from tests.run.homes import write_home

TRAINING = {"max_steps": 10, "epochs": 10, "log_every": 1, "checkpoint_every": 3, "evaluate_every": 6}


@contextlib.contextmanager
def small_disk(path: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own at ``path``; gives a function that changes its options."""
    path.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system can only be mounted by root")
    try:
        yield lambda changed: subprocess.run(["mount", "-o", f"remount,{changed}", path], check=True) and None
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a configuration, and an uninterrupted run ``whole``."""
    return write_home(tmp_path_factory.mktemp("home"), TRAINING, 32)


def size(folder: Path) -> int:
    """Bytes of the files in a folder, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def number(text: str) -> float:
    return float(text.replace(",", ""))


def check_one_checkpoint(run: Path, name: str) -> None:
    there = {path.name for path in (run / "checkpoints").iterdir()}
    assert there - {"best"} == {name, "latest", "run.json"}
    assert (run / "checkpoints" / "latest").read_text() == name
    done = commands.run("checkpoint", "verify", run)
    assert done.returncode == 0, done.stdout + done.stderr


def test_disk_full(home: Path, tmp_path: Path) -> None:
    """Room for one checkpoint and a half: the first one stays, and training goes on to its end."""
    one = size(home / "whole" / "checkpoints" / "step_00000009")
    with small_disk(tmp_path / "disk", f"size={one * 3 // 2}") as remount:
        run = tmp_path / "disk" / "run"
        done = commands.run("train", home / "run.yaml", "--output", run, processes=2)
        assert done.returncode == 2, done.stdout + done.stderr
        lines = done.stderr.splitlines()
        needed = [re.search(r"it needs ([\d.,]+) KiB and ([\d.,]+) KiB are free", line) for line in lines]
        assert all(needed), done.stderr
        assert all(number(found[1]) > number(found[2]) for found in needed if found)
        warned = [line for line in lines if line.startswith("WARNING: step ")]
        assert [line.split()[2] for line in warned] == ["6", "9"]
        assert all(line.endswith("the newest checkpoint is step_00000003.") for line in warned)
        assert lines[2].startswith("error: ")
        assert lines[2].endswith("the newest checkpoint is step_00000003: go on from it with --resume.")
        assert len(lines) == 3
        check_one_checkpoint(run, "step_00000003")
        assert not (run / "checkpoints" / "best").exists(), "the best one was not saved"
        assert commands.losses(run / "metrics.jsonl") == commands.losses(home / "whole" / "metrics.jsonl")
        remount("size=100%")
        done = commands.run("train", home / "run.yaml", "--output", run, "--resume", processes=2)
        assert done.returncode == 0, done.stderr
        assert (run / "results.json").read_bytes() == (home / "whole" / "results.json").read_bytes()


def test_disk_full_of_other_things(home: Path, tmp_path: Path) -> None:
    """Not a byte is free, for no file of the run: metrics wait in memory, TensorBoard gives up; nothing stops training."""
    with small_disk(tmp_path / "disk", "size=16m") as _:
        run, fill, log = tmp_path / "disk" / "run", tmp_path / "disk" / "fill", tmp_path / "log"
        settings = ("--set", "training.max_steps=40", "--set", "training.evaluate_every=100")
        process = commands.start("train", home / "run.yaml", "--output", run, *settings, processes=2, log=log)
        while not (run / "checkpoints" / "latest").exists() and process.poll() is None:
            time.sleep(0.01)
        with contextlib.suppress(OSError), open(fill, "wb", buffering=0) as file:
            for block in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(block))
        wait_for(log, "training goes on", process)
        fill.unlink()
        assert process.wait(120) == 0, log.read_text()
        assert (run / "checkpoints" / "latest").read_text() == "step_00000040"
        assert "Traceback" not in log.read_text()
        entries = [entry["step"] for entry in commands.read_metrics(run / "metrics.jsonl") if entry["kind"] == "train"]
        assert entries == list(range(1, 41))


def test_stop(home: Path, tmp_path: Path) -> None:
    one = size(home / "whole" / "checkpoints" / "step_00000009")
    with small_disk(tmp_path / "disk", f"size={one * 3 // 2}"):
        run = tmp_path / "disk" / "run"
        setting = ("--set", "training.on_save_error=stop")
        done = commands.run("train", home / "run.yaml", "--output", run, *setting, processes=2)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith(f"error: {run}/checkpoints/step_00000006: cannot be written")
        check_one_checkpoint(run, "step_00000003")


def test_no_files_left(home: Path, tmp_path: Path) -> None:
    """Inodes run out, as the index of the second checkpoint would be one too many."""
    with small_disk(tmp_path / "disk", "nr_inodes=1000") as remount:
        run = tmp_path / "disk" / "run"
        shutil.copytree(home / "whole", run)
        shutil.rmtree(run / "tensorboard")
        used = sum(1 for _ in run.rglob("*")) + 3
        remount(f"nr_inodes={used + 4}")
        done = commands.run(
            "train", home / "run.yaml", "--output", run, "--resume", "--set", "training.max_steps=13", processes=2
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        errors = [line for line in done.stderr.splitlines() if "step_00000012" in line]
        assert len(errors) == 1
        assert re.search(r"needs \d+ files and the file system has room for \d", errors[0]), errors
        assert not list(run.rglob("*.tmp"))


def wait_for(log: Path, text: str, process: commands.Command) -> None:
    end = time.monotonic() + 120
    while text not in log.read_text():
        assert time.monotonic() < end
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)


def test_a_read_only_folder_and_a_signal(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(commands.ENVIRONMENT, commands.NO_OVERRIDE, "1")
    run, log = tmp_path / "run", tmp_path / "log"
    settings = ("--set", "training.max_steps=100000", "--set", "training.epochs=100000")
    process = commands.start("train", home / "run.yaml", "--output", run, *settings, processes=2, log=log)
    while not (run / "checkpoints" / "latest").exists() and process.poll() is None:
        time.sleep(0.01)
    (run / "checkpoints").chmod(0o555)
    wait_for(log, "is not saved, and training goes on", process)
    commands.kill_tree(process, signal.SIGTERM)
    process.wait(120)
    text = log.read_text()
    assert "Traceback" not in text
    newest = (run / "checkpoints" / "latest").read_text()
    stopped = re.search(r"stopped after step \d+ of 100000, which is NOT saved: (.*)", text)
    assert stopped, text
    assert "cannot be written (Permission denied)" in stopped[1]
    assert f"the newest checkpoint is {newest}; resume from it with the run's folder" in stopped[1]
    assert not list(run.rglob("*.tmp"))
    (run / "checkpoints").chmod(0o755)
    verified = commands.run("checkpoint", "verify", run)
    assert verified.returncode == 0, verified.stdout


class Tensors:
    """A tensor of its own on every process."""

    def __init__(self, rank: int) -> None:
        self.tensor = torch.arange(30_000.0) + rank
        self.rank = rank

    def prepare_load(self) -> None: ...

    def tensors(self) -> dict[str, Any]:
        return {f"part_{self.rank}": self.tensor}

    def loaded(self, state: RunState) -> None: ...


def save_twice(rank: int, folder: str, background: bool) -> list[str]:
    """Save two checkpoints, of which the second fails on the last process only; the errors, and what is there."""
    checkpoints = Checkpoints(LocalStore(Path(folder)))
    checkpoints.save(Tensors(rank), RunState(step=1))
    from dlrm_mtl.checkpoint import folder as module

    write = module.write_files

    def fail(*arguments: Any) -> Any:
        index = write(*arguments)
        if rank == 1:
            raise OSError(28, os.strerror(28))
        return index

    module.write_files = fail
    found = []
    try:
        checkpoints.save(Tensors(rank), RunState(step=2), background)
        checkpoints.finish()
    except SaveError as error:
        found.append(str(error))
    module.write_files = write
    found.append(json.dumps(sorted(os.listdir(f"{folder}/checkpoints"))))
    checkpoints.save(Tensors(rank), RunState(step=3), background)
    checkpoints.finish()
    return found


@pytest.mark.parametrize("background", [False, True])
def test_the_failure_of_one_process_is_that_of_all(tmp_path: Path, background: bool) -> None:
    for error, there in run_processes(2, save_twice, str(tmp_path), background):
        assert error == (
            f"{tmp_path}/checkpoints/step_00000002: cannot be written (No space left on device); make room, or correct the "
            "permissions; the newest checkpoint is step_00000001."
        )
        assert json.loads(there) == ["latest", "run.json", "step_00000001"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000003"


def test_size_text() -> None:
    assert [size_text(size, "bytes") for size in (12, 2048, 3 << 20, 5 << 30, 1 << 50)] == [
        "12 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "5.0 GiB",
        "1,024.0 TiB",
    ]
