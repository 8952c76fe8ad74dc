"""The processes of a run: rank, device, and communication of Python objects."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.launch_environment import check_launch_environment
from dlrm_mtl.core.orphans import end_with_agent

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=10)


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
def process_group() -> Iterator[Process]:
    """Join the processes that the launcher (torchrun, torchx) started; a group of one without a launcher.

    One group serves CPU tensors by gloo and CUDA tensors by NCCL. A worker ends when its agent does. An existing process
    group is used as it is and not destroyed.

    Raises:
        UserError: variables of the launcher are missing or wrong.
    """
    if dist.is_initialized():
        yield this_process()
        return
    process = join()
    try:
        yield process
    finally:
        dist.destroy_process_group()


def join() -> Process:
    """Make the process group, see :func:`process_group`. The caller destroys it.

    Raises:
        UserError: variables of the launcher are missing or wrong.
    """
    launched = check_launch_environment()
    end_with_agent()
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    if launched:
        dist.init_process_group(backend, timeout=TIMEOUT, **_own_store())
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    return this_process()


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
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or environment.get("GROUP_WORLD_SIZE") != "1":
        return {}
    shared = dist.TCPStore(
        environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False, timeout=TIMEOUT
    )
    store = dist.PrefixStore(f"attempt_{environment['TORCHELASTIC_RESTART_COUNT']}", shared)
    return {"store": store, "rank": int(environment["RANK"]), "world_size": int(environment["WORLD_SIZE"])}


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
