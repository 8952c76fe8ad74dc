"""``torchrun`` for this package: the same arguments, and a quiet end when the user made a mistake or pressed Ctrl-C.

    python -m dlrm_mtl.launcher --nproc_per_node 2 -m dlrm_mtl train configs/kuairand_mmoe.yaml

A worker that exits with code 2 has told the user what to correct: the workers are not restarted and the job ends with code 2
and no further report. A signal goes on to the workers, which have --shutdown_timeout seconds (30) to save and leave; the job
then ends with 128 + the signal's number. A second signal kills them. ``OMP_NUM_THREADS`` defaults to the cores per worker.
Every attempt gets a store of its own, so that restarted workers find each other. With several hosts, ``--node_rank`` decides
which one has the first ranks, also where hosts find one another by c10d; hosts that join or are lost are told of, and a
rendezvous that fails ends in a sentence.
"""

import contextlib
import json
import logging
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

# Read when torch is loaded; otherwise its C++ code prints every connection that it retries.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from torch.distributed import DistError, run
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError, RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    _NodeDesc,
    _NodeDescGenerator,
)
from torch.distributed.launcher import api

from dlrm_mtl.core.cores import available_cores
from dlrm_mtl.core.errors import EXIT_CODE


class Watchdog:
    """Thread that ends this process, in a sentence, when it is stuck: a store that is cut off can block its clients.

    Args:
        sentence: what to say.
    """

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        self._end = math.inf
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def allow(self, seconds: float) -> None:
        """Set the time limit anew, from now on."""
        self._end = time.monotonic() + seconds

    def _watch(self) -> None:
        while (left := self._end - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
        print(f"error: {self._sentence}", file=sys.stderr, flush=True)
        os._exit(1)  # the workers end with their agent


class Agent(LocalElasticAgent):
    """The stock agent, made to say when it restarts workers and not to restart them after a user's mistake."""

    watchdog: ClassVar[Watchdog]
    store_seconds: ClassVar[float] = 120.0
    """Seconds without an answer of the rendezvous' store after which it is lost."""
    join_seconds: ClassVar[float] = 720.0
    """Seconds that a rendezvous may take."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self.watchdog.allow(self.store_seconds)
        result = super()._monitor_workers(worker_group)
        if any(failure.exitcode == EXIT_CODE for failure in result.failures.values()):
            self._remaining_restarts = 0
        elif result.is_failed() and worker_group.spec.rdzv_handler.num_nodes_waiting() > 0:
            # Another agent has stopped its workers for a host that joins, and those here have left with them.
            return RunResult(state=WorkerState.HEALTHY)
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if worker_group.state == WorkerState.HEALTHY:
            print("A host joins: restarting the workers.", file=sys.stderr, flush=True)
        else:
            print(f"Restarting the workers ({self._remaining_restarts} restarts left).", file=sys.stderr, flush=True)
        super()._restart_workers(worker_group)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        before = worker_group.group_world_size
        self.watchdog.allow(self.join_seconds)
        super()._rendezvous(worker_group)
        now = worker_group.group_world_size
        if before and now != before and worker_group.group_rank == 0:
            print(f"Going on with {now} host{'s' * (now > 1)}; there were {before}.", file=sys.stderr, flush=True)

    def _exit_barrier(self) -> None:
        self.watchdog.allow(self._exit_barrier_timeout + self.store_seconds)
        super()._exit_barrier()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self.watchdog.allow(timeout + self.store_seconds)
        try:
            super()._shutdown(death_sig, timeout)
        except SignalException:
            super()._shutdown(signal.SIGKILL, timeout)
            raise


@dataclass(frozen=True)
class _Host(_NodeDesc):
    """A host in the rendezvous, which gives out ranks in the order of sorted hosts: by place, then as torch sorts them."""

    place: int

    def __lt__(self, other: _NodeDesc) -> bool:
        if not isinstance(other, _Host):
            return NotImplemented
        return (self.place, self.addr, self.pid, self.local_id) < (other.place, other.addr, other.pid, other.local_id)


class _HostGenerator(_NodeDescGenerator):
    """Generator of descriptions of this host, with its place among all hosts."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def generate(self, local_addr: str | None = None) -> _Host:
        host = super().generate(local_addr)
        return _Host(host.addr, host.pid, host.local_id, self.place)


def main(argv: list[str] | None = None) -> int:
    """Run ``torchrun`` with ``argv`` and return the exit code."""
    arguments = run.parse_args(argv)
    if "OMP_NUM_THREADS" not in os.environ:
        workers = run.determine_local_world_size(arguments.nproc_per_node)
        os.environ["OMP_NUM_THREADS"] = str(max(1, available_cores() // workers))
    # A store for each attempt: in the one that agents share, restarted workers find the addresses of those that died, and try
    # them until they give up (torch 2.13, DynamicRendezvousHandler.use_agent_store).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    if "LOGLEVEL" not in os.environ:  # what these two say is in the table of failures, or the user asked for it
        for name in ("agent.server.api", "multiprocessing.api"):
            logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    if not os.environ.get("TORCHX_JOB_ID", "").startswith("local"):
        os.environ.pop("DLRM_MTL_LIVE", None)  # the terminal of the launch is elsewhere
    if os.environ.get("TORCHX_JOB_ID", "").startswith("slurm"):
        os.environ.pop("SLURM_PTY_PORT", None)  # of a shell in `srun --pty` from which the job was submitted
    if arguments.rdzv_backend != "static":
        DynamicRendezvousHandler._node_desc_generator = _HostGenerator(arguments.node_rank)
        arguments.node_rank = 0  # torchrun would warn that it ignores it
    Agent.watchdog = Watchdog(_out_of_reach(arguments))
    given = dict(re.findall(r"(\w+)=(\d+)", arguments.rdzv_conf))
    Agent.store_seconds = 2.0 * float(given.get("read_timeout", 60))
    Agent.join_seconds = float(given.get("join_timeout", 600)) + Agent.store_seconds
    api.LocalElasticAgent = Agent  # type: ignore[misc]  # launch_agent() takes no other class
    try:
        run.run(arguments)
    except ChildFailedError as error:
        if any(failure.exitcode == EXIT_CODE for failure in error.failures.values()):
            _tell_client(EXIT_CODE)
            return EXIT_CODE
        print(error, file=sys.stderr)
        return 1
    except SignalException as error:
        return 128 + error.sigval
    except (RendezvousError, DistError) as error:
        print(f"error: {_explained(error, arguments)}", file=sys.stderr, flush=True)
        return 1
    finally:
        Agent.watchdog.allow(math.inf)
    return 0


def _explained(error: Exception, arguments: Namespace) -> str:
    """The sentence about a failed rendezvous."""
    if isinstance(error, RendezvousClosedError):
        return f"{_rendezvous(arguments)} is closed, because the job has ended; start all hosts again for another job."
    if isinstance(error, RendezvousTimeoutError):
        return (
            f"{_rendezvous(arguments)} lacks hosts: fewer than --nnodes {arguments.nnodes} asks for have come in time; start "
            "the others, or allow for fewer with --nnodes MIN:MAX."
        )
    return _out_of_reach(arguments)


def _out_of_reach(arguments: Namespace) -> str:
    return (
        f"{_rendezvous(arguments)} is out of reach: the host there has left the job, is down or cut off, or its name or port "
        "is wrong. The job ends on this host."
    )


def _rendezvous(arguments: Namespace) -> str:
    return f"{socket.gethostname()}: the rendezvous at {arguments.rdzv_endpoint or 'this host'}"


def _tell_client(code: int) -> None:
    """Leave the exit code for torchx's client, which knows of a job on this machine only whether it failed."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place:
        with contextlib.suppress(OSError):
            Path(place).write_text(json.dumps({"exit_code": code}))


if __name__ == "__main__":
    sys.exit(main())
