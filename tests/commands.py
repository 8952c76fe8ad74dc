"""Running the real command line in processes of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.processes import CONTEXT

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


NO_OVERRIDE = "TEST_WITHOUT_CAPABILITIES"
"""Variable for processes in which permissions count, whoever runs the tests."""


def command(*arguments: object, processes: int = 1) -> list[str]:
    """The command line of ``dlrm-mtl``, in several processes by torchrun's twin if wanted."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "dlrm_mtl.launcher", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", "dlrm_mtl", *(str(argument) for argument in arguments)]


def run(*arguments: object, processes: int = 1, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``dlrm-mtl`` to its end, see :class:`Command`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        done = Command(arguments, processes, out, err, cwd).wait(240)
        return subprocess.CompletedProcess(["dlrm-mtl", *map(str, arguments)], done, out.read_text(), err.read_text())


def run_launched(*arguments: object, processes: int) -> subprocess.CompletedProcess[str]:
    """Run ``dlrm-mtl`` to its end as users do: the launcher and every worker start a Python of their own."""
    line = command(*arguments, processes=processes)
    return subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)


def start(
    *arguments: object,
    processes: int = 1,
    log: Path,
    variables: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Command:
    """Start ``dlrm-mtl`` in a session of its own, with its output in ``log``.

    Args:
        arguments: arguments of ``dlrm-mtl``.
        processes: number of processes.
        log: file for standard output and standard error.
        variables: environment variables in addition to the usual ones.
        before: called first in the new process.
    """
    return Command(arguments, processes, log, log, variables=variables, before=before)


class Command:
    """``dlrm-mtl`` in processes of its own, which come from one that has imported everything; like a Popen.

    Several processes are started as by torchrun, by an agent above them that ends them all when one fails and leaves with
    code 2 when one did.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        processes: int,
        out: Path,
        err: Path,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        given, environment = [str(argument) for argument in arguments], {**ENVIRONMENT, **(variables or {})}
        self._process = CONTEXT.Process(
            target=_agent, args=(given, processes, environment, str(out), str(err), str(cwd or Path.cwd()), before)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code.

        Raises:
            TimeoutExpired: it did not end in time, and is killed now.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            kill_tree(self)
            raise subprocess.TimeoutExpired("dlrm-mtl", timeout or 0.0)
        return self._process.exitcode


def _agent(
    arguments: list[str],
    processes: int,
    environment: dict[str, str],
    out: str,
    err: str,
    cwd: str,
    before: Callable[[], None] | None,
) -> None:
    os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if before is not None:
        before()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if NO_OVERRIDE in environment:
        _give_up_capabilities()
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    time.tzset()
    tempfile.tempdir = None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    if processes == 1:
        _main(arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = set()
    for rank in range(processes):
        worker = os.fork()
        if worker == 0:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes)
            )
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
            os.environ.update(TORCHELASTIC_RESTART_COUNT="0", GROUP_RANK="0", GROUP_WORLD_SIZE="1")
            _main(arguments)
        workers.add(worker)
    for number in (signal.SIGINT, signal.SIGTERM):  # the workers get them, too, and decide
        signal.signal(number, lambda *_: None)
    codes = set()
    while workers:
        worker, status = os.wait()
        workers.remove(worker)
        codes.add(os.waitstatus_to_exitcode(status))
        if codes != {0}:  # the others may be about to say the same
            signal.signal(signal.SIGALRM, lambda *_: _end(workers))
            signal.alarm(3)
    os._exit(2 if 2 in codes else 0 if codes == {0} else 1)


def _give_up_capabilities() -> None:
    """Give up what root may do more than others, such as to read every file."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    none = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0


def _end(workers: set[int]) -> None:
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGTERM)


def _main(arguments: list[str]) -> None:
    from dlrm_mtl.cli import main

    sys.argv = ["dlrm-mtl", *arguments]
    code: object = 1
    try:
        main()
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def wait_for_step(metrics: Path, step: int, process: Command | subprocess.Popen[str], timeout: float = 120.0) -> None:
    """Wait until ``metrics.jsonl`` has an entry of ``step`` or a later one."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        if metrics.is_file() and any(entry["step"] >= step for entry in read_metrics(metrics)):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} did not come; exit code {process.poll()}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def losses(path: Path) -> dict[int, dict[str, float]]:
    """Losses by step."""
    entries = [entry for entry in read_metrics(path) if entry["kind"] == "train"]
    return {entry["step"]: {key: value for key, value in entry.items() if key.startswith("loss/")} for entry in entries}


def kill_tree(process: Command | subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal to a process and everything below it, at once."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    tree = [process.pid]
    for pid in tree:
        tree.extend(children.get(pid, []))
    for pid in reversed(tree):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def write_config(path: Path, content: dict[str, object]) -> Path:
    """Write a configuration file."""
    path.write_text(yaml.safe_dump(content))
    return path
