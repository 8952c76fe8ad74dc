"""The processes of a run: rank, device, and communication of Python objects."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dlrm_mtl.core.cores import available_cores
from dlrm_mtl.core.errors import PeerLostError, UserError
from dlrm_mtl.core.job_watch import JobWatch
from dlrm_mtl.core.launch_environment import check_launch_environment
from dlrm_mtl.core.memory import keep_freed_memory
from dlrm_mtl.core.orphans import end_with_agent
from dlrm_mtl.core.peers import is_lost_peer, sentence

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=10)
PATIENCE = 300.0
"""Default of ``training.stall_timeout``, in seconds."""

_watch: JobWatch | None = None


@dataclass(frozen=True)
class Process:
    """Rank and device of this process."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for the process that prints and writes for all."""
        return self.rank == 0


def local_rank() -> int:
    """Rank of this process on its host; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def process_group(patience: float | None = PATIENCE) -> Iterator[Process]:
    """Join the processes that the launcher (torchrun, torchx) started; a group of one without a launcher.

    One group serves CPU tensors by gloo and CUDA tensors by NCCL. A worker ends when its agent does. An existing process
    group is used as it is and not destroyed.

    Args:
        patience: seconds without a sign of life from a process before the job ends, see
            :class:`~dlrm_mtl.core.job_watch.JobWatch`; None to wait for ever.

    Raises:
        UserError: variables of the launcher are missing or wrong.
        PeerLostError: another process is gone.
    """
    joined = not dist.is_initialized()
    process = join(patience) if joined else this_process()
    try:
        yield process
    except BaseException as error:
        first = _watch is None or _watch.first_to_tell()  # what raised first is the cause
        if is_lost_peer(error) and process.world_size > 1:
            raise PeerLostError(sentence(process.rank, socket.gethostname()) if first else "") from error
        raise
    finally:
        if joined:
            leave()


def join(patience: float | None = PATIENCE) -> Process:
    """Make the process group, see :func:`process_group`. The caller leaves it.

    Raises:
        UserError: variables of the launcher are missing or wrong.
    """
    global _watch
    launched = check_launch_environment()
    limit_threads()
    keep_freed_memory()
    end_with_agent()
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    if launched:
        dist.init_process_group(backend, timeout=TIMEOUT, **_own_store())
        if patience is not None and dist.get_world_size() > 1:
            store = dist.PrefixStore("watch", _connection())
            _watch = JobWatch(store, dist.get_rank(), dist.get_world_size(), patience)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    return this_process()


def limit_threads() -> None:
    """Use no more threads than this host's processes have cores, unless OMP_NUM_THREADS says how many.

    PyTorch does not know of a container's share of the cores: with 64 threads on a share of 4 cores, all of them wait.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    share = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if torch.get_num_threads() > share:
        torch.set_num_threads(share)


def leave() -> None:
    """Destroy the process group that :func:`join` made."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch = None
    dist.destroy_process_group()


def this_process() -> Process:
    """Rank and device of this process in the process group."""
    device = torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    return Process(dist.get_rank(), dist.get_world_size(), device)


def _own_store() -> dict[str, Any]:
    """Arguments for a store that no earlier attempt has used; empty unless attempts share the store of torchrun's only agent.

    In a shared store, restarted workers would find the addresses of dead ones. Several agents count their attempts
    differently; there torchrun must be started with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, as :mod:`dlrm_mtl.launcher` is.
    """
    environment = os.environ
    if not _shares_store():
        return {}
    return {"store": _connection(), "rank": int(environment["RANK"]), "world_size": int(environment["WORLD_SIZE"])}


def _shares_store() -> bool:
    environment = os.environ
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and environment.get("GROUP_WORLD_SIZE") == "1"


def _connection() -> dist.Store:
    """A connection of its own to the job's store, to what this attempt keeps there."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=TIMEOUT)
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if _shares_store() else ""
    return dist.PrefixStore(f"attempt_{attempt}", store) if attempt else store


def first_process_only(action: Callable[[], T]) -> T:
    """Run ``action`` on the first process; all processes get its result, or raise its :class:`UserError`."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        outcome = [*_outcome(action)]
    dist.broadcast_object_list(outcome)
    result, mistake = outcome
    if mistake is not None:
        raise UserError(mistake)
    return result


def on_every_process(action: Callable[[], T]) -> list[T]:
    """Run ``action`` on every process; all get the results, by rank, or raise the first process's :class:`UserError`."""
    outcomes = gather_objects(_outcome(action))
    for _, mistake in outcomes:
        if mistake is not None:
            raise UserError(mistake)
    return [result for result, _ in outcomes]


def _outcome(action: Callable[[], T]) -> tuple[Any, str | None]:
    try:
        return action(), None
    except UserError as error:
        return None, str(error)


def gather_objects(value: T) -> list[T]:
    """Values of all processes, by rank, on every process."""
    gathered: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def one_by_one(value: T) -> Iterator[T]:
    """Values of all processes, by rank, one at a time: for values too large to hold together.

    Every process must iterate to the end.
    """
    if dist.get_world_size() == 1:
        yield value
        return
    for rank in range(dist.get_world_size()):
        box = [value if rank == dist.get_rank() else None]
        dist.broadcast_object_list(box, src=rank)
        assert box[0] is not None
        yield box[0]
