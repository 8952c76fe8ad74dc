"""One writer for a run's folder: the refusal of a second one names the first, and a dead one's lock is taken over."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage import run_lock
from dlrm_mtl.storage.run_lock import LOCK, FileLock, Holder, Lease, RunLock, this_process
from dlrm_mtl.storage.run_store import LocalStore
from tests import synthetic

Make = Callable[..., RunLock]


def file_lock(folder: Path, job: str = "", restarted: bool = False) -> RunLock:
    return FileLock(folder, str(folder), job, restarted)


def lease(folder: Path, job: str = "", restarted: bool = False) -> RunLock:
    return Lease(LocalStore(folder), job, restarted)


BOTH = pytest.mark.parametrize("make", [file_lock, lease])


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW", 0.05), ("WATCH", 0.4), ("RESTART", 0.4), ("SETTLE", 0.01)):
        monkeypatch.setattr(run_lock, f"{name}_SECONDS", seconds)


@contextmanager
def another_process(make: Make, folder: Path) -> Iterator[int]:
    """A process that holds the lock until it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with make(folder):
                os.write(writing, b"x")
                time.sleep(60)
        finally:
            os._exit(0)
    assert os.read(reading, 1) == b"x"
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def dead() -> Holder:
    """A holder whose process is gone."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return dataclasses.replace(this_process(""), pid=child, started="12345")


def elsewhere(job: str = "") -> Holder:
    return dataclasses.replace(this_process(job), host="gpu-7", machine="another", pid=4711)


@BOTH
def test_a_second_process_is_told_who_the_first_is(make: Make, tmp_path: Path) -> None:
    with another_process(make, tmp_path) as holder:
        with pytest.raises(UserError) as raised, make(tmp_path):
            pass
        sentence = str(raised.value)
        assert sentence.startswith(
            f"{tmp_path}: process {holder} on {socket.gethostname()} has been writing into this "
        )
        assert " UTC; wait for its end" in sentence
    with make(tmp_path) as lock:  # the holder was killed
        assert (tmp_path / LOCK).exists()
        lock.check()
    assert not (tmp_path / LOCK).exists()


@BOTH
def test_what_a_dead_process_left(make: Make, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(dead().text())
    with make(tmp_path) as lock:
        lock.check()


@BOTH
def test_a_process_of_another_machine_that_does_not_renew_its_lock(make: Make, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(elsewhere().text())
    start = time.monotonic()
    with make(tmp_path):
        assert time.monotonic() - start >= 0.4
    for text in ("", "nonsense", "[]"):
        (tmp_path / LOCK).write_text(text)
        with make(tmp_path):
            pass


@BOTH
def test_a_process_of_another_machine_that_renews_its_lock(make: Make, tmp_path: Path) -> None:
    holder, end = elsewhere(), threading.Event()

    def renew() -> None:
        beat = 0
        while not end.wait(0.02):
            beat += 1
            temporary = tmp_path / "renewed"
            temporary.write_text(dataclasses.replace(holder, renewed=beat).text())
            os.replace(temporary, tmp_path / LOCK)

    (tmp_path / LOCK).write_text(holder.text())
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"process 4711 on gpu-7 has been writing"), make(tmp_path):
            pass
    finally:
        end.set()
        thread.join()


@BOTH
def test_the_same_job_moves_to_another_machine(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", 60.0)
    (tmp_path / LOCK).write_text(elsewhere("job-1").text())
    start = time.monotonic()
    with make(tmp_path, job="job-1"):
        assert time.monotonic() - start < 30


@BOTH
def test_a_restarted_job_waits_for_its_former_process(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "RESTART_SECONDS", 30.0)
    first = make(tmp_path)
    first.__enter__()
    timer = threading.Timer(0.3, first.__exit__)
    timer.start()
    with make(tmp_path, restarted=True):
        timer.join()


@BOTH
def test_a_lock_that_was_taken_over_is_noticed(make: Make, tmp_path: Path) -> None:
    with make(tmp_path) as lock:
        (tmp_path / "other").write_text(elsewhere().text())
        os.replace(tmp_path / "other", tmp_path / LOCK)
        assert lock._thread is not None
        lock._thread.join(30)  # it has nothing left to renew
        with pytest.raises(UserError, match="process 4711 on gpu-7"):
            lock.check()
    assert "gpu-7" in (tmp_path / LOCK).read_text(), "the lock of the other is left alone"


def test_a_file_system_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with another_process(file_lock, tmp_path) as holder, pytest.raises(UserError) as raised, file_lock(tmp_path):
        pass
    assert f"process {holder} on " in str(raised.value)
    with file_lock(tmp_path):
        pass


def test_the_command_line(tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    data = synthetic.write_dataset(tmp_path / "data", rows=200)
    content = synthetic.config(data, training={"epochs": 1, "max_steps": 1})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    train = ("train", tmp_path / "run.yaml", "--output", tmp_path / "run")
    said = f"error: {tmp_path / 'run'}: process {os.getpid()} on {socket.gethostname()} has been writing"
    with file_lock(tmp_path / "run"):
        code, printed = call(*train)
        assert code == 2
        assert said in printed
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert call(*train)[0] == 0
    longer = (*train, "--resume", "--set", "training.max_steps=2")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with file_lock(tmp_path / "run"):
        code, printed = call(*longer)
        assert code == 2
        assert said in printed
        assert call("evaluate", tmp_path / "run")[0] == 0
        code, printed = call("checkpoint", "prune", tmp_path / "run", "--keep", "1")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert call(*longer)[0] == 0
