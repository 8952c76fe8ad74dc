"""The processes of a run: who we are, what we compute on, how we talk."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from dlrm_mtl.errors import UserError

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Process:
    """This process's place among all."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes for all."""
        return self.rank == 0


def local_rank() -> int:
    """The number of this process on its host; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def process_group() -> Iterator[Process]:
    """Join the processes that the launcher started (torchrun, torchx), or be alone without one.

    gloo serves CPU tensors and NCCL CUDA tensors, in one group.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    try:
        yield Process(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def first_process_only(action: Callable[[], None]) -> None:
    """Run ``action`` on the first process while the others wait; a user's mistake found there is raised on all of them."""
    mistake: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except UserError as error:
            mistake = [str(error)]
    dist.broadcast_object_list(mistake)
    if mistake[0] is not None:
        raise UserError(mistake[0])


def gather_objects(value: T) -> list[T]:
    """What every process passes, by rank, on all of them."""
    gathered: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
