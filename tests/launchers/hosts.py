"""Several hosts on this machine: network namespaces with a name, an address and a cable that a test may cut or slow down.

Needs Linux, root and Debian's iproute2. The hosts share the files of this machine, as on a cluster with shared storage.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests import commands

PORT = 29500
"""Port of the rendezvous, on the first host."""
NAMES = "host-a", "host-b", "host-c", "host-d"
_MARK = "dlrmtest"
_FILES = Path("/etc/netns")
"""Where ``ip netns exec`` looks for files that a namespace has in the place of those in /etc."""
_IDENTITY = "/proc/sys/kernel/random/boot_id"
_ENTER = f'hostname "$0"; mount --bind "$1" {_IDENTITY}; shift; exec "$@"'
"""A host is known by its name and, to locks, by the identity of its kernel."""
_NEW_NET, _NEW_UTS, _NEW_MOUNTS = 0x40000000, 0x04000000, 0x00020000
_PRIVATE, _BIND = (1 << 18) | (1 << 14), 1 << 12
_numbers = itertools.count()


class Host:
    """A host.

    Args:
        namespace: name of its network namespace.
        name: host name.
        address: address on the common network.
        cable: name of the switch's end of its cable.
        switch: network namespace of the switch.
        identity: file with the identity of its kernel.
    """

    def __init__(self, namespace: str, name: str, address: str, cable: str, switch: str, identity: Path) -> None:
        self.namespace, self.name, self.address = namespace, name, address
        self._cable, self._switch, self._identity = cable, switch, identity

    def start(self, line: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on this host, with its output appended to ``log``; the process that is returned runs it."""
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", _ENTER, self.name]
        with log.open("ab") as file:
            return subprocess.Popen(
                [*enter, str(self._identity), *line],
                env=commands.ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def enter(self) -> None:
        """Move this process, which must have one thread, to the host."""
        namespace = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        _system("setns", namespace, _NEW_NET)
        os.close(namespace)
        _system("unshare", _NEW_UTS | _NEW_MOUNTS)
        socket.sethostname(self.name)
        _system("mount", b"none", b"/", None, _PRIVATE, None)
        for own, there in ((_FILES / self.namespace / "hosts", "/etc/hosts"), (self._identity, _IDENTITY)):
            _system("mount", str(own).encode(), there.encode(), None, _BIND, None)

    def pids(self) -> list[int]:
        """Processes that run on this host."""
        return [int(pid) for pid in _call("ip", "netns", "pids", self.namespace).split()]

    def workers(self) -> list[int]:
        """Processes on this host that run ``dlrm-mtl``, other than agents."""
        return [pid for pid in self.pids() if _is_worker(pid)]

    def cut(self) -> None:
        """Pull its cable: packets are lost, and nobody is told."""
        _call("ip", "-n", self._switch, "link", "set", self._cable, "nomaster")

    def mend(self) -> None:
        """Plug its cable in."""
        _call("ip", "-n", self._switch, "link", "set", self._cable, "master", "switch")

    def slow_down(self, rate: str) -> None:
        """Limit its cable to ``rate``, such as "50mbit", in both directions."""
        for namespace, end in ((self._switch, self._cable), (self.namespace, "eth0")):
            shape = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "500ms"]
            _call("tc", "-n", namespace, "qdisc", "replace", "dev", end, *shape)


class Hosts:
    """Hosts inside a ``with`` block; at its end their processes are killed and nothing of them is left.

    Args:
        count: number of hosts.
    """

    def __init__(self, count: int = 2) -> None:
        self._name = f"{_MARK}-{os.getpid()}-{next(_numbers)}"
        self._count = count
        self._folder = Path(tempfile.mkdtemp(prefix=self._name))
        self._namespaces: list[str] = []
        self.hosts: list[Host] = []

    def __enter__(self) -> list[Host]:
        _sweep()
        try:
            return self._build()
        except BaseException:
            self._remove()
            raise

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._remove()

    def _build(self) -> list[Host]:
        switch = self._namespace("switch")
        _call("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
        _call("ip", "-n", switch, "link", "set", "switch", "up")
        addresses = {name: f"10.213.0.{number + 1}" for number, name in enumerate(NAMES[: self._count])}
        table = "".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **addresses}.items())
        for name, address in addresses.items():
            namespace, identity = self._namespace(name), self._folder / name
            identity.write_text(f"{uuid.uuid4()}\n")
            (_FILES / namespace).mkdir(parents=True)
            (_FILES / namespace / "hosts").write_text(table)
            ends = ["type", "veth", "peer", "name", "eth0", "netns", namespace]
            _call("ip", "-n", switch, "link", "add", name, *ends)
            _call("ip", "-n", switch, "link", "set", name, "master", "switch", "up")
            _call("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _call("ip", "-n", namespace, "link", "set", device, "up")
            self.hosts.append(Host(namespace, name, address, name, switch, identity))
        return self.hosts

    def _namespace(self, name: str) -> str:
        namespace = f"{self._name}-{name}"
        self._namespaces.append(namespace)
        _call("ip", "netns", "add", namespace)
        return namespace

    def _remove(self) -> None:
        for namespace in self._namespaces:
            _remove_namespace(namespace)
        shutil.rmtree(self._folder, ignore_errors=True)


def start_processes(hosts: Sequence[Host], *arguments: object, folder: Path) -> list[commands.Command]:
    """Start ``dlrm-mtl`` without agents, in one process per host from one that is warm; output in ``log-HOST``."""
    found = []
    for rank, host in enumerate(hosts):
        variables = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(len(hosts)), "LOCAL_WORLD_SIZE": "1"}
        variables |= {"MASTER_ADDR": hosts[0].name, "MASTER_PORT": str(PORT)}
        log = folder / f"log-{host.name}"
        found.append(commands.start(*arguments, log=log, variables=variables, before=host.enter))
    return found


def launch(
    *arguments: object,
    nnodes: str = "2",
    restarts: int = 0,
    join_seconds: int = 100,
    launcher: str = "dlrm_mtl.launcher",
) -> list[str]:
    """The command line of an agent, the same on all hosts, as a torchx component writes it, but with less patience."""
    agent = [sys.executable, "-m", launcher, "--nnodes", nnodes, "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    agent += ["--rdzv-endpoint", f"{NAMES[0]}:{PORT}", "--rdzv-id", "job", "--max-restarts", str(restarts)]
    patience = f"join_timeout={join_seconds},last_call_timeout=3,keep_alive_interval=1,read_timeout=10"
    return [*agent, "--rdzv-conf", patience, "-m", "dlrm_mtl", *map(str, arguments)]


@functools.cache
def obstacle() -> str:
    """Why this machine has no place for hosts; empty if it has."""
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2, util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Hosts(1) as (host,):
            log = Path(tempfile.mkstemp()[1])
            if host.start(["true"], log).wait(20) != 0:
                return log.read_text().strip()
            host.slow_down("100mbit")
    except (subprocess.CalledProcessError, OSError) as error:
        return f"network namespaces are not allowed: {getattr(error, 'stderr', None) or error}"
    return ""


def _system(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _call(*line: str) -> str:
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=20).stdout


def _is_worker(pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"dlrm_mtl" in line and b"dlrm_mtl.launcher" not in line


def _remove_namespace(namespace: str) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        end = time.monotonic() + 20
        while (pids := _call("ip", "netns", "pids", namespace).split()) and time.monotonic() < end:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)
        _call("ip", "netns", "del", namespace)
    shutil.rmtree(_FILES / namespace, ignore_errors=True)
    with contextlib.suppress(OSError):
        _FILES.rmdir()


def _sweep() -> None:
    """Remove what a killed test process has left."""
    for name in _call("ip", "netns", "list").split():
        found = re.match(rf"{_MARK}-(\d+)-", name)
        if found and not Path(f"/proc/{found.group(1)}").exists():
            _remove_namespace(name)
