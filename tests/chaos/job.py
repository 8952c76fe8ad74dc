"""A job of several agents with the real launcher and rendezvous, on one machine."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.commands import ENVIRONMENT, kill_tree
from tests.processes import CONTEXT

HERE = Path(__file__).parent


class Job:
    """``dlrm-mtl`` under agents of ``dlrm_mtl.launcher``, each with processes of its own.

    Agents are forked from a process that has imported everything, and workers from agents, so that a start takes a second.

    Args:
        arguments: of ``dlrm-mtl``.
        log: file that the output of all processes is added to.
        agents: number of agents.
        processes: number of processes of each agent.
        cold: True to start every process as users do, by a Python of its own.
        launcher: module of the agents.
        max_restarts: number of times that an agent restarts its processes.
        worker: script in this folder that the processes run; not for a cold start.
        environment: further variables.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        log: Path,
        agents: int = 2,
        processes: int = 2,
        cold: bool = False,
        launcher: str = "dlrm_mtl.launcher",
        max_restarts: int = 10,
        worker: str = "worker.py",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log, self._cold, self._launcher = log, cold, launcher
        self._environment = {**ENVIRONMENT, **(environment or {})}
        endpoint = f"127.0.0.1:{_free_port()}"
        self._options = ["--nnodes", str(agents), "--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
        self._options += ["--rdzv-endpoint", endpoint, "--rdzv-id", "chaos", "--local-addr", "127.0.0.1"]
        self._options += ["--max-restarts", str(max_restarts)]
        how = ["-m", "dlrm_mtl"] if cold else ["--run-path", "--start-method", "fork", str(HERE / worker)]
        self._options += [*how, *(str(argument) for argument in arguments)]
        self.agents = [self._start()]
        _wait_for_port(endpoint, self.agents[0])  # the first agent keeps the job's store
        self.agents += [self._start() for _ in range(1, agents)]
        self._replaced: list[Agent] = []

    def _start(self) -> Agent:
        return Agent(self._launcher, self._options, self._log, self._environment, self._cold)

    def start_again(self, number: int) -> None:
        """Start an agent in the place of one that is gone."""
        self._replaced.append(self.agents[number])
        self.agents[number] = self._start()

    def exit_code(self) -> int | None:
        """0 if all agents ended well, None while one runs, else the code of one that did not."""
        codes = [agent.poll() for agent in self.agents]
        return None if None in codes else next((code for code in codes if code), 0)

    def kill(self) -> None:
        """Send SIGKILL to all processes at once, and wait for their end."""
        everyone = self.agents + self._replaced
        for agent in everyone:
            agent.kill_all()
        for agent in everyone:
            agent.wait_until_gone()


class Agent:
    """An agent and its workers."""

    def __init__(
        self, launcher: str, arguments: list[str], log: Path, environment: dict[str, str], cold: bool = False
    ) -> None:
        self._workers: set[tuple[int, str]] = set()
        self._cold: subprocess.Popen[bytes] | None = None
        if cold:
            line = [sys.executable, "-m", launcher, *arguments]
            with open(log, "ab") as file:
                self._cold = subprocess.Popen(line, env=environment, stdout=file, stderr=file, start_new_session=True)
            self.pid = self._cold.pid
        else:
            self._warm = CONTEXT.Process(target=_agent, args=(launcher, arguments, str(log), environment))
            self._warm.start()
            assert self._warm.pid is not None
            self.pid = self._warm.pid

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._warm.exitcode if self._cold is None else self._cold.poll()

    def workers(self) -> list[int]:
        """Processes below the agent, the first rank first."""
        try:
            found = [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            found = []
        self._workers.update((pid, _started(pid)) for pid in found)
        return sorted(found)

    def kill(self) -> None:
        """Send SIGKILL to the agent alone."""
        self.workers()
        if self.poll() is None:  # its number may be another process's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """Send SIGKILL to the agent and its workers, also those whose agent is gone."""
        self.workers()
        if self.poll() is None:
            kill_tree(self)  # type: ignore[arg-type]
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_until_gone(self) -> None:
        """Wait until the agent and all its workers have ended."""
        end = time.monotonic() + 20
        while self.poll() is None or self._left():
            assert time.monotonic() < end, "processes do not end after SIGKILL"
            time.sleep(0.01)

    def _left(self) -> list[int]:
        """Workers that run; the number of one that has ended may belong to another program."""
        return [pid for pid, started in self._workers if started and _started(pid) == started]


def _agent(launcher: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.setsid()
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL)
    code = importlib.import_module(launcher).main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _started(pid: int) -> str:
    """Start of a process, in ticks since boot; empty if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for_port(endpoint: str, agent: Agent) -> None:
    host, port = endpoint.split(":")
    end = time.monotonic() + 60
    while time.monotonic() < end and agent.poll() is None:
        with socket.socket() as client:
            if client.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"the first agent does not answer at {endpoint}; exit code {agent.poll()}")
