"""Jobs on a real Slurm cluster, submitted by torchx as users do."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import commands, synthetic
from tests.launchers.slurm_cluster import NODES, CannotStart, Cluster

ROOT = Path(__file__).resolve().parents[2]
HELD = 20
"""First step that takes a second while there is a file ``hold``."""

PLUGIN = f"""
import pathlib, time
import dlrm_mtl

@dlrm_mtl.register("listener", "hold")
class Hold(dlrm_mtl.Listener):
    def on_step(self, event):
        if event.step >= {HELD} and pathlib.Path("hold").exists():
            time.sleep(1)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.__enter__()
    except CannotStart as error:
        pytest.skip(f"no Slurm cluster: {error}")
    with cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder from which jobs are submitted, with a data set and a configuration."""
    folder = tmp_path_factory.mktemp("shared")
    dataset = synthetic.write_dataset(folder / "data")
    training = {"epochs": 4, "log_every": 1, "checkpoint_every": 20, "listeners": ["hold"]}
    commands.write_config(folder / "run.yaml", synthetic.config(dataset, plugins=["hold_runs"], training=training))
    (folder / "hold_runs.py").write_text(PLUGIN)
    return folder


class Job:
    """A training job on two hosts with the output folder ``name``, submitted by ``torchx run``."""

    def __init__(self, cluster: Cluster, shared: Path, name: str, *options: str) -> None:
        self.cluster, self.shared, self.output = cluster, shared, shared / name
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = ["-j", "2x1", "--config", "run.yaml", "--output", name, "--rdzv_port", str(port), *options]
        component = f"{ROOT / 'launchers' / 'train.py'}:ddp"
        torchx = [sys.executable, "-m", "torchx.cli.main", "--log_level", "WARNING", "run", "-s", "slurm"]
        self.client = subprocess.run(
            [*torchx, component, *arguments],
            cwd=shared,
            env={**cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        handle = re.fullmatch(r"slurm://torchx/(\d+)\n", self.client.stdout)
        assert handle, self.client
        self.number = handle[1]

    def said(self, host: int = 0, stream: str = "out") -> str:
        """Output of a host."""
        return (self.shared / f"slurm-{self.number}-train-{host}.{stream}").read_text()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        try:
            self.cluster.wait_for(condition, what)
        except AssertionError as error:
            files = sorted(self.shared.glob(f"slurm-{self.number}*"))
            told = "\n".join(f"== {file.name}\n{file.read_text()}" for file in files)
            raise AssertionError(f"{error}; queue {self.cluster.queued(self.number)}\n{told}") from None

    def wait_for_step(self, step: int) -> None:
        metrics = self.output / "metrics.jsonl"
        self.wait_for(lambda: metrics.is_file() and len(commands.losses(metrics)) >= step, f"step {step}")

    def wait_for_end(self) -> None:
        self.wait_for(lambda: not self.cluster.queued(self.number), f"the end of job {self.number}")

    def nodes(self) -> list[str]:
        return self.cluster.call("squeue", "-h", "-j", self.number, "-o", "%N").split()

    def history(self) -> list[tuple[str, int]]:
        lines = (self.output / "history.jsonl").read_text().splitlines()
        return [(entry["event"], entry["step"]) for entry in map(json.loads, lines)]


@pytest.fixture(scope="module")
def whole(cluster: Cluster, shared: Path) -> Job:
    """A job that has run to its end undisturbed."""
    job = Job(cluster, shared, "whole")
    job.wait_for_end()
    return job


def check_same_run(job: Job, whole: Job) -> None:
    """Assert that losses of all steps and results are those of the undisturbed job, bit for bit."""
    ours, theirs = job.output, whole.output
    assert commands.losses(ours / "metrics.jsonl") == commands.losses(theirs / "metrics.jsonl")
    assert json.loads((ours / "results.json").read_text()) == json.loads((theirs / "results.json").read_text())


def test_two_hosts_train_to_the_end(shared: Path, whole: Job) -> None:
    assert whole.client.returncode == 0
    number, file = whole.number, shared / f"slurm-{whole.number}-train-0.out"
    assert whole.client.stderr.splitlines()[1:] == [  # sacct's own remark stands above
        f"Slurm: job {number} is submitted. Without accounting torchx cannot tell its state: squeue -j {number} can, "
        f"scancel {number} ends it, and its output is in {file}."
    ]
    assert json.loads((whole.output / "results.json").read_text())["test"]["click/auc"] > 0.6
    assert "2 process(es)" in whole.said()
    assert "synthetic: test split, 250 rows" in whole.said()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", whole.said()), "more than plain text"
    assert [whole.said(1), whole.said(0, "err"), whole.said(1, "err")] == ["", "", ""]


def drain_and_requeue(job: Job) -> None:
    job.cluster.call("scontrol", "update", f"NodeName={NODES[0]}", "State=DRAIN", "Reason=repair")
    job.cluster.call("scontrol", "requeue", job.number)


def preempt(job: Job) -> None:
    job.cluster.call("sbatch", "-p", "urgent", "-N", len(NODES), "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


def terminate(job: Job) -> None:
    job.cluster.call("scancel", "--signal=TERM", job.number)


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [drain_and_requeue, preempt, terminate])
def test_a_disturbed_job_saves_and_goes_on_at_the_same_step(
    cluster: Cluster, shared: Path, whole: Job, disturb: Callable[[Job], None]
) -> None:
    hold = shared / "hold"
    hold.touch()
    job = Job(cluster, shared, disturb.__name__, "--resume", "True", "--max_retries", "1")
    try:
        job.wait_for_step(HELD)
        assert job.nodes() == list(NODES[:2])
        disturb(job)
        job.wait_for(lambda: set(cluster.queued(job.number)) == {"PENDING"}, "the end of the first attempt")
        hold.unlink()
        stopped = len(commands.losses(job.output / "metrics.jsonl"))
        job.wait_for(lambda: len(job.history()) > 1, "the second attempt")
        if disturb is drain_and_requeue:
            assert job.nodes() == list(NODES[1:]), "on the nodes that are left"
        job.wait_for_end()
    finally:
        hold.unlink(missing_ok=True)
        cluster.call("scancel", "--quiet", job.number)
        if disturb is drain_and_requeue:
            cluster.call("scontrol", "update", f"NodeName={NODES[0]}", "State=RESUME")
    assert job.history() == [("resume", 0), ("resume", stopped), ("end", 64)]
    assert f"resuming after step {stopped}" in job.said()
    check_same_run(job, whole)


@pytest.mark.slow
def test_a_job_goes_on_elsewhere_when_a_node_dies(cluster: Cluster, shared: Path, whole: Job) -> None:
    hold = shared / "hold"
    hold.touch()
    job = Job(cluster, shared, "crash", "--resume", "True")
    try:
        job.wait_for_step(HELD)
        latest = job.output / "checkpoints" / "latest"  # written in the background
        job.wait_for(lambda: latest.read_text() == f"step_{HELD:08}", "the last checkpoint before the crash")
        assert job.nodes() == list(NODES[:2])
        cluster.crash(NODES[1])
        hold.unlink()
        job.wait_for(lambda: len(job.history()) > 1, "the second attempt")
        assert job.nodes() == [NODES[0], NODES[2]]
        job.wait_for_end()
    finally:
        hold.unlink(missing_ok=True)
        cluster.call("scancel", "--quiet", job.number)
        cluster.restart(NODES[1])
        cluster.wait_for(lambda: cluster.states() == ["idle"] * len(NODES), "all nodes are up again")
    assert job.history() == [("resume", 0), ("resume", HELD), ("end", 64)]
    check_same_run(job, whole)
