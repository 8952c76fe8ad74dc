"""A private Slurm cluster on this machine: munged, slurmctld and three slurmd, without accounting.

``python -m tests.launchers.slurm_cluster`` opens a shell in which sbatch, squeue and torchx see such a cluster. Everything
lies below one temporary folder and ends with the shell. Nothing of a Slurm that is installed as a service is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

NODES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
"""Nodes; addresses as names need no entries in /etc/hosts."""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")

CONFIGURATION = """
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeAddr={name} NodeHostname={host} Port={port} CPUs=2 RealMemory=4000\n"


class CannotStart(Exception):
    """No cluster can be started here; the message says why."""


class Cluster:
    """A cluster inside a ``with`` block.

    Raises:
        CannotStart: at the start of the block.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self.environment: dict[str, str] = {}
        """Environment variables of processes that use the cluster."""

    def __enter__(self) -> Cluster:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where the daemons are
        missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
        if missing:
            raise CannotStart(
                f"there is no {', '.join(missing)}; with Debian and Ubuntu: apt-get install slurm-wlm munge"
            )
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has 107 characters at most
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))},
            "PATH": path,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }
        self._supervisor = subprocess.Popen(
            [sys.executable, __file__, str(self.folder)], env=self.environment, stdin=subprocess.PIPE
        )
        try:
            self.wait_for(lambda: self.states() == ["idle"] * len(NODES), "nodes are up", 60)
        except AssertionError as error:
            logs = "".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("*.log")))
            self.__exit__(None, None, None)
            raise CannotStart(f"{error}\n{logs[-3000:]}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        self._supervisor.wait()

    def call(self, program: str, *arguments: object) -> str:
        """Output of a Slurm program, which must succeed."""
        line = [program, *map(str, arguments)]
        return subprocess.run(
            line, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    def states(self) -> list[str]:
        """States of the nodes, by name; empty while the controller does not answer."""
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split()
        return []

    def queued(self, job: str) -> list[str]:
        """States of a job's hosts in the queue; empty when it has ended."""
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.call("squeue", "-h", "-j", job, "-o", "%T").split()
        return []

    def crash(self, node: str) -> None:
        """Kill all processes of a node at once, as in a power failure."""
        doomed = {int((self.folder / f"slurmd-{node}.pid").read_text())}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (process / "environ").read_bytes().split(b"\0")
                if f"SLURMD_NODENAME={node}".encode() in variables:
                    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                    doomed |= {int(process.name), parent}  # the parent of a task is slurmstepd
        for pid in doomed - {os.getpid(), self._supervisor.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # so that none can report that another one died
        for pid in doomed - {os.getpid(), self._supervisor.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def restart(self, node: str) -> None:
        """Start a crashed node again."""
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(f"{node}\n".encode())
        self._supervisor.stdin.flush()

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        """Wait until something holds.

        Raises:
            AssertionError: it did not in time.
        """
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not in {seconds:.0f} s: {what}; nodes {self.states()}"
            time.sleep(0.2)


def _supervise(folder: Path) -> None:
    """Run the daemons until stdin is closed, also by the caller's death; then kill them and all their descendants."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # stdin decides; SIG_IGN would be inherited by jobs
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become children of this process
    signal.signal(signal.SIGCHLD, _reap)
    try:
        _start_daemons(folder)
        for line in sys.stdin:
            _start_node(folder, line.strip())
    finally:
        _end_children()
        shutil.rmtree(folder)


def _start_daemons(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(1 + len(NODES))]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    user = pwd.getpwuid(os.getuid()).pw_name
    host = socket.gethostname().partition(".")[0]
    nodes = "".join(NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports[1:], strict=True))
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, port=ports[0], user=user, host=host) + nodes)
    (folder / "cgroup.conf").touch()
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    munge = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge.{name}" for option, name in munge.items()]
    _start(folder, "munged", "--foreground", "--force", "--num-threads=1", *options)
    while not (folder / "munge.socket").exists():
        time.sleep(0.05)
    _start(folder, "slurmctld", "-D")
    for node in NODES:
        _start_node(folder, node)


def _start_node(folder: Path, node: str) -> None:
    _start(folder, "slurmd", "-D", "-N", node)


def _start(folder: Path, *command: str) -> None:
    with open(folder / f"{command[0]}-output.log", "ab") as log:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _reap(number: int, frame: FrameType | None) -> None:
    """Reap children that have ended: Slurm waits until no process of a job is left, and counts zombies."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _end_children() -> None:
    """Kill children until there are none: those of a killed child become children of this process."""
    while True:
        for pid in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def main() -> None:
    """Open a shell beside a cluster."""
    try:
        with Cluster() as cluster:
            print(f"Slurm runs until you leave this shell; its files are in {cluster.folder}.")
            subprocess.run([os.environ.get("SHELL", "bash")], env=cluster.environment)
    except CannotStart as error:
        sys.exit(f"No cluster: {error}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _supervise(Path(sys.argv[1]))
    else:
        main()
