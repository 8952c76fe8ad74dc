"""Processes of a job that stop, hang or die: the job ends soon, one sentence names the process, and no one is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import commands, synthetic

PATIENCE = 8
STEPS = 100_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def add_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str, str], None]:
    """Adds a module, from its name and code, to the plugins of a configuration."""

    def add(config: Path, name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        monkeypatch.setitem(commands.ENVIRONMENT, "PYTHONPATH", path)
        config.write_text(config.read_text() + f"plugins: [{name}]\n")

    return add


def written(dataset: Path, tmp_path: Path, **training: Any) -> Path:
    training = {"epochs": STEPS, "max_steps": STEPS, "log_every": 1, "stall_timeout": PATIENCE, **training}
    content = synthetic.config(dataset, training=training)
    return commands.write_config(tmp_path / "run.yaml", content)


def run_until(
    config: Path, tmp_path: Path, act: Callable[[list[int]], None], processes: int = 2
) -> tuple[int, str, list[int]]:
    """Train, call ``act`` with the workers in mid-training, and wait; exit code, output, workers."""
    log, output = tmp_path / "log", tmp_path / "out"
    process = commands.start("train", config, "--output", output, processes=processes, log=log)
    try:
        commands.wait_for_step(output / "metrics.jsonl", 20, process)
        workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        act(workers)
        end = time.monotonic() + 60
        while "error: " not in log.read_text() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        for worker in workers:  # as a launcher does, for a stopped process takes no other signal
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        code = process.wait(60)
    finally:
        commands.kill_tree(process)
    return code, log.read_text(), workers


def sentences(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("error: ")]


def test_a_stopped_process_is_named(dataset: Path, tmp_path: Path) -> None:
    def stop(workers: list[int]) -> None:
        os.kill(workers[1], signal.SIGSTOP)

    code, log, workers = run_until(written(dataset, tmp_path), tmp_path, stop)
    assert code == 1
    (said,) = sentences(log)
    assert f"pid {workers[1]}) gave no sign of life for {PATIENCE} seconds" in said
    assert said.startswith("error: process 1 (")
    assert re.search(r"last seen in [a-z]+ .*step \d+;|last seen in setting up;", said)
    assert "where process 1 stood:" in log
    assert "dlrm_mtl/training/loop.py:" in log
    assert "Traceback" not in log


def test_the_first_process_is_looked_at_too(dataset: Path, tmp_path: Path) -> None:
    """It holds the store, so that the others hear of it by the store's silence."""

    def stop(workers: list[int]) -> None:
        os.kill(workers[0], signal.SIGSTOP)

    code, log, _ = run_until(written(dataset, tmp_path), tmp_path, stop)
    assert code == 1
    (said,) = sentences(log)
    assert f"did not answer for {2 * PATIENCE} seconds" in said or "process 0 (" in said
    assert "Traceback" not in log


def test_a_stuck_process_is_named_with_its_stack(
    dataset: Path, tmp_path: Path, add_plugin: Callable[[Path, str, str], None]
) -> None:
    config = written(dataset, tmp_path, listeners=["stuck"])
    add_plugin(
        config,
        "stuck",
        """
    import time

    import torch.distributed as dist

    import dlrm_mtl

    @dlrm_mtl.register("listener", "stuck")
    class Stuck(dlrm_mtl.Listener):
        every_process = True

        def on_step(self, event):
            while event.step == 30 and dist.get_rank() == 1:
                time.sleep(0.1)
    """,
    )
    code, log, workers = run_until(config, tmp_path, lambda workers: None)
    assert code == 1
    (said,) = sentences(log)
    assert said.startswith("error: process 1 (")
    assert f"pid {workers[1]}) made no progress for " in said
    assert "last seen in the update of step 30" in said
    assert "stuck.py:" in log
    assert "Traceback" not in log


def test_survivors_leave_with_one_sentence(dataset: Path, tmp_path: Path) -> None:
    def kill(workers: list[int]) -> None:
        os.kill(workers[1], signal.SIGKILL)

    code, log, _ = run_until(written(dataset, tmp_path, stall_timeout=60), tmp_path, kill, processes=4)
    assert code == 1
    (said,) = sentences(log)
    assert "lost another process of the job" in said
    assert "--resume" in said
    assert "Traceback" not in log


def test_a_mistake_that_one_process_meets_is_all_that_is_said(dataset: Path, tmp_path: Path) -> None:
    """As a row that only one process reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = synthetic.write_dataset(tmp_path / "data")
    path = data / "train" / "part-1.parquet"
    table = pq.read_table(path)
    column = table.column_names.index("price")
    spoilt = table["price"].to_numpy().copy()
    spoilt[300] = float("nan")
    pq.write_table(table.set_column(column, "price", pa.array(spoilt)), path, row_group_size=130)
    done = commands.run("train", written(data, tmp_path, stall_timeout=60), "--output", tmp_path / "out", processes=2)
    assert done.returncode == 2
    assert len(sentences(done.stderr)) == 1
    assert "price" in done.stderr
    assert "Traceback" not in done.stderr


def test_long_phases_of_all_processes_are_no_stall(
    dataset: Path, tmp_path: Path, add_plugin: Callable[[Path, str, str], None]
) -> None:
    """A save that takes longer than the limit is only remarked on, and a process that has left is not missed."""
    config = written(dataset, tmp_path, listeners=["slow"], epochs=1, max_steps=5, stall_timeout=6)
    add_plugin(
        config,
        "slow",
        """
    import time

    import dlrm_mtl

    @dlrm_mtl.register("listener", "slow")
    class Slow(dlrm_mtl.Listener):
        every_process = True

        def on_checkpoint_start(self, event):
            time.sleep(13)

        def on_end(self, event):
            import torch.distributed as dist
            time.sleep(13 * (dist.get_rank() == 0))
    """,
    )
    done = commands.run("train", config, "--output", tmp_path / "out", processes=2)
    assert done.returncode == 0, done.stderr
    assert "all processes have been in the checkpoint of step 5 for " in done.stderr


@pytest.mark.slow
def test_the_launcher_restarts_a_job_with_a_stopped_process(dataset: Path, tmp_path: Path) -> None:
    """Each of the two in turn; torchrun's agent gives workers 30 seconds before it kills them."""
    config = written(dataset, tmp_path, epochs=40, max_steps=600, checkpoint_every=50, stall_timeout=3)
    output, log = tmp_path / "out", tmp_path / "log"
    line = commands.command("train", config, "--output", output, processes=2)
    line[line.index("--nproc-per-node") : line.index("--nproc-per-node")] = ["--max-restarts", "2"]
    with log.open("w") as file:
        process = subprocess.Popen(line, env=commands.ENVIRONMENT, stdout=file, stderr=file)
    try:
        for rank in (1, 0):
            step = max(commands.losses(output / "metrics.jsonl"), default=0) if output.exists() else 0
            commands.wait_for_step(output / "metrics.jsonl", step + 60, process)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            workers = [pid for pid in children if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            os.kill(int(workers[rank]), signal.SIGSTOP)
            while Path(f"/proc/{workers[rank]}").exists():
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        assert process.wait(120) == 0, log.read_text()
    finally:
        commands.kill_tree(process)
    assert len(sentences(log.read_text())) == 2
    assert "Traceback" not in log.read_text()
    assert (output / "results.json").is_file()
