"""Jobs on several hosts: hosts that are cut off, that are slow, that join and leave."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import commands, synthetic
from tests.launchers import hosts

STEPS = 300
PATIENCE = 8


@pytest.fixture(autouse=True)
def possible() -> None:
    if why := hosts.obstacle():
        pytest.skip(f"no hosts here: {why}")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def pair() -> Iterator[list[hosts.Host]]:
    with hosts.Hosts(2) as both:
        yield both


def written(dataset: Path, tmp_path: Path, **training: Any) -> Path:
    training = {"epochs": 100_000, "log_every": 1, "early_stopping": {"patience": 0}, **training}
    return commands.write_config(tmp_path / "run.yaml", synthetic.config(dataset, training=training))


def log_of(host: hosts.Host, tmp_path: Path) -> str:
    return (tmp_path / f"log-{host.name}").read_text()


def sentences(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("rate", [None, "20mbit"])
def test_two_hosts_train_like_one(dataset: Path, tmp_path: Path, pair: list[hosts.Host], rate: str | None) -> None:
    """A slow connection between them changes nothing but the time."""
    config = written(dataset, tmp_path, max_steps=12)
    if rate:
        for host in pair:
            host.slow_down(rate)
    started = hosts.start_processes(pair, "train", config, "--output", tmp_path / "two", folder=tmp_path)
    assert [process.wait(120) for process in started] == [0, 0], log_of(pair[0], tmp_path)
    done = commands.run("train", config, "--output", tmp_path / "one", processes=2)
    assert done.returncode == 0, done.stderr
    one, two = (commands.losses(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert list(two) == list(range(1, 13))
    for step, expected in one.items():
        assert two[step] == pytest.approx(expected, rel=1e-5)
    results = [json.loads((tmp_path / name / "results.json").read_text())["test"] for name in ("one", "two")]
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_a_host_that_is_cut_off_is_named_and_nobody_hangs(
    dataset: Path, tmp_path: Path, pair: list[hosts.Host]
) -> None:
    config = written(dataset, tmp_path, stall_timeout=PATIENCE)
    first, second = hosts.start_processes(pair, "train", config, "--output", tmp_path / "out", folder=tmp_path)
    commands.wait_for_step(tmp_path / "out" / "metrics.jsonl", 30, first)
    pair[1].cut()
    assert [first.wait(60), second.wait(60)] == [1, 1]
    (here,), (there,) = (sentences(log_of(host, tmp_path)) for host in pair)
    assert here.startswith("error: process 1 (host-b, pid ")
    assert f"gave no sign of life for {PATIENCE} seconds: stopped, or cut off from the others; last seen in " in here
    silence = f"the store of the job did not answer for {2 * PATIENCE} seconds"
    assert there.startswith(f"error: process 1 on host-b: {silence}")
    assert not any("Traceback" in log_of(host, tmp_path) for host in pair)


def test_the_doctor_finds_two_hosts_well(dataset: Path, tmp_path: Path, pair: list[hosts.Host]) -> None:
    line = ["doctor", "--distributed", "--path", dataset, "--output", tmp_path / "out"]
    started = hosts.start_processes(pair, *line, folder=tmp_path)
    assert [process.wait(60) for process in started] == [0, 0], log_of(pair[0], tmp_path)
    log = log_of(pair[0], tmp_path)
    assert "│ host-a │ 0 " in log
    assert "│ host-b │ 1 " in log
    assert "collectives: right results on 2 processes" in log
    assert "pairs: 1 of 1 measured" in log
    assert "process 0 (host-a) and process 1 (host-b)" in log
    assert "clocks: within 0.0" in log
    assert f"{dataset}: 7 files" in log
    assert log.endswith("All is well.\n")
    assert log_of(pair[1], tmp_path) == ""
    assert not list(tmp_path.rglob(".dlrm-mtl-doctor*"))


def test_the_doctor_names_the_slow_host(tmp_path: Path) -> None:
    with hosts.Hosts(3) as three:
        three[1].slow_down("50mbit")
        started = hosts.start_processes(three, "doctor", "--distributed", folder=tmp_path)
        assert [process.wait(60) for process in started] == [2, 2, 2], log_of(three[0], tmp_path)
        log = log_of(three[0], tmp_path)
        (said,) = sentences(log)
        assert said.startswith("error: network: the slowest host is host-b, by a factor of ")
        assert "pairs: 3 of 3 measured" in log
        assert "All is well." not in log
        assert "".join(log_of(host, tmp_path) for host in three[1:]) == ""


def test_hosts_that_do_not_come_are_missed_in_a_sentence(tmp_path: Path, pair: list[hosts.Host]) -> None:
    pair[1].cut()
    line = hosts.launch("doctor", "--distributed", join_seconds=3)
    agent = pair[0].start(line, tmp_path / "log-host-a")
    assert agent.wait(60) == 1
    (said,) = sentences(log_of(pair[0], tmp_path))
    assert "host-a: the rendezvous at host-a:29500 lacks hosts: fewer than --nnodes 2 asks for" in said
    assert "Traceback" not in log_of(pair[0], tmp_path)


class Gate:
    """Holds a run up, so that hosts have the time to come and go before it ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "open"
        (folder / "gated.py").write_text(
            textwrap.dedent(f"""
            import os
            import time

            import dlrm_mtl

            @dlrm_mtl.register("listener", "gated")
            class Gated(dlrm_mtl.Listener):
                def on_step(self, event):
                    time.sleep(0.0 if os.path.exists({str(self._path)!r}) else 0.3)
            """)
        )

    def open(self) -> None:
        """Let the run end."""
        self._path.touch()


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setitem(commands.ENVIRONMENT, "PYTHONPATH", path)
    return Gate(tmp_path)


def gated(dataset: Path, tmp_path: Path, **training: Any) -> Path:
    config = written(dataset, tmp_path, max_steps=STEPS, checkpoint_every=20, listeners=["gated"], **training)
    config.write_text(config.read_text() + "plugins: [gated]\n")
    return config


def wait_until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def history(output: Path) -> list[tuple[str, int]]:
    """Events of a run, with the number of processes."""
    path = output / "history.jsonl"
    entries = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return [(entry["event"], entry.get("processes", 0)) for entry in entries]


def check_result(config: Path, output: Path, tmp_path: Path) -> None:
    """Every step was taken once, and each as by one process that nothing happened to."""
    done = commands.run("train", config, "--output", tmp_path / "undisturbed")
    assert done.returncode == 0, done.stderr
    expected, found = (commands.losses(path / "metrics.jsonl") for path in (tmp_path / "undisturbed", output))
    assert list(found) == list(range(1, STEPS + 1))
    for step, losses in expected.items():
        assert found[step] == pytest.approx(losses, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["dlrm_mtl.launcher", "torch.distributed.run"])
def test_a_host_that_joins(
    dataset: Path, tmp_path: Path, pair: list[hosts.Host], gate: Gate, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    """Also by torchrun, if agents do not share its store."""
    monkeypatch.setitem(commands.ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    config, output = gated(dataset, tmp_path), tmp_path / "out"
    line = hosts.launch("train", config, "--output", output, nnodes="1:2", launcher=launcher)
    first = pair[0].start(line, tmp_path / "log-host-a")
    commands.wait_for_step(output / "metrics.jsonl", 10, first)
    second = pair[1].start(line, tmp_path / "log-host-b")
    wait_until(lambda: len(history(output)) > 1 or first.poll() is not None)
    gate.open()
    assert [first.wait(120), second.wait(120)] == [0, 0], log_of(pair[0], tmp_path)
    assert history(output) == [("start", 1), ("resume", 2), ("end", 0)]
    if launcher == "dlrm_mtl.launcher":
        assert "A host joins: restarting the workers." in log_of(pair[0], tmp_path)
        assert "Going on with 2 hosts; there were 1." in log_of(pair[0], tmp_path)
        assert not any("Traceback" in log_of(host, tmp_path) for host in pair)
    check_result(config, output, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cut off", "agent killed", "told to leave"])
def test_a_host_that_is_lost(dataset: Path, tmp_path: Path, pair: list[hosts.Host], gate: Gate, loss: str) -> None:
    config, output = gated(dataset, tmp_path, stall_timeout=PATIENCE), tmp_path / "out"
    line = hosts.launch("train", config, "--output", output, nnodes="1:2", restarts=1)
    first, second = (host.start(line, tmp_path / f"log-{host.name}") for host in pair)
    commands.wait_for_step(output / "metrics.jsonl", 25, first)
    if loss == "cut off":
        pair[1].cut()
    else:
        second.send_signal(signal.SIGKILL if loss == "agent killed" else signal.SIGTERM)
    wait_until(lambda: len(history(output)) > 1 or first.poll() is not None)
    gate.open()
    assert first.wait(120) == 0, log_of(pair[0], tmp_path)
    expected = {"cut off": 1, "agent killed": -signal.SIGKILL, "told to leave": 128 + signal.SIGTERM}
    assert second.wait(120) == expected[loss], log_of(pair[1], tmp_path)
    wait_until(lambda: not pair[1].pids())
    assert history(output) == [("start", 2), ("resume", 1), ("end", 0)]
    log = log_of(pair[0], tmp_path)
    assert "Restarting the workers (0 restarts left)." in log
    assert "Going on with 1 host; there were 2." in log
    assert not any("Traceback" in log_of(host, tmp_path) for host in pair)
    if loss == "cut off":
        assert any("process 1 (host-b, pid " in said for said in sentences(log))
        assert "error: host-b: the rendezvous at host-a:29500 is out of reach" in log_of(pair[1], tmp_path)
    check_result(config, output, tmp_path)


@pytest.mark.slow
def test_the_host_of_the_rendezvous_is_lost(dataset: Path, tmp_path: Path, pair: list[hosts.Host], gate: Gate) -> None:
    """Then no host goes on, and none hangs."""
    config, output = gated(dataset, tmp_path, stall_timeout=PATIENCE), tmp_path / "out"
    line = hosts.launch("train", config, "--output", output, nnodes="1:2", restarts=3)
    first, second = (host.start(line, tmp_path / f"log-{host.name}") for host in pair)
    commands.wait_for_step(output / "metrics.jsonl", 25, first)
    first.kill()
    assert second.wait(120) == 1
    wait_until(lambda: not pair[0].pids() and not pair[1].pids())
    log = log_of(pair[1], tmp_path)
    assert "error: host-b: the rendezvous at host-a:29500 is out of reach" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_on_its_host(
    dataset: Path, tmp_path: Path, pair: list[hosts.Host], gate: Gate
) -> None:
    config, output = gated(dataset, tmp_path), tmp_path / "out"
    line = hosts.launch("train", config, "--output", output, restarts=1)
    agents = [host.start(line, tmp_path / f"log-{host.name}") for host in pair]
    commands.wait_for_step(output / "metrics.jsonl", 25, agents[0])
    (worker,) = pair[1].workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(history(output)) > 1 or agents[0].poll() is not None)
    gate.open()
    assert [agent.wait(120) for agent in agents] == [0, 0], log_of(pair[0], tmp_path)
    assert history(output) == [("start", 2), ("resume", 2), ("end", 0)]
    check_result(config, output, tmp_path)
