"""A process group of many processes of which one exists: its collectives take the others' parts from a simulation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlrm_mtl.embeddings.torchrec import compat
from dlrm_mtl.scaling.record import note

BACKEND = "simulated"

Others = Callable[[Tensor, list[int]], list[Tensor] | None]
"""Answers to an all-to-all of the whole world: called with the input and its split sizes, which are empty for equal parts, it
returns the parts [world] that the processes send to this one, or None to let this process receive what it sends."""


class SimulatedGroup(dist.ProcessGroup):
    """A group of ``size`` processes in which all but number ``rank`` are simulated.

    Without :attr:`others`, every other process is taken to hold what this one holds: sums and minima are left as they are,
    and gathered or exchanged tensors are repetitions of this process's own.
    """

    others: Others | None = None
    """Parts that others send in all-to-alls of groups of all processes; see :func:`simulated_processes`."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._rank, self._size = rank, size

    def size(self) -> int:
        """Number of processes."""
        return self._size

    def rank(self) -> int:
        """Number of this process."""
        return self._rank

    def getBackendName(self) -> str:  # noqa: N802  (torch's name)
        """Name of the backend."""
        return BACKEND

    @property
    def pg_name(self) -> str:
        """Name under which torch registered the group."""
        return compat.name_of_group(self)

    @property
    def group_name(self) -> str:  # type: ignore[override]
        """The same."""
        return self.pg_name

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:  # type: ignore[override]
        """Leave ``tensors`` as they are."""
        note("all_reduce", tensors, tensors, self)
        return compat.finished_work(tensors)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        """Leave ``tensors`` as they are."""
        note("all_reduce", tensors, tensors, self)
        return compat.finished_work(tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:  # type: ignore[override]
        """Leave ``tensors`` as they are."""
        return compat.finished_work(tensors)

    def barrier(self, opts: Any = None) -> dist.Work:
        """Return at once."""
        return compat.finished_work([])

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> dist.Work:  # type: ignore[override]
        """Give every process's place this process's tensor."""
        note("all_gather", inputs, outputs, self)
        for parts, own in zip(outputs, inputs, strict=True):
            for part in parts:
                part.copy_(own)
        return compat.finished_work(outputs)

    def all_gather_single(self, output: Tensor, own: Tensor, opts: Any = None) -> dist.Work:
        """Give every process's place this process's tensor."""
        note("all_gather", own, output, self)
        _repeat(output, own)
        return compat.finished_work([output])

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> dist.Work:  # type: ignore[override]
        """Keep this process's part of its own tensor."""
        note("reduce_scatter", inputs, outputs, self)
        for output, parts in zip(outputs, inputs, strict=True):
            output.copy_(parts[self._rank])
        return compat.finished_work(outputs)

    def reduce_scatter_single(self, output: Tensor, own: Tensor, opts: Any = None) -> dist.Work:
        """Keep this process's part of its own tensor."""
        note("reduce_scatter", own, output, self)
        output.copy_(own.view(self._size, *output.shape)[self._rank])
        return compat.finished_work([output])

    def all_to_all_single(
        self, output: Tensor, own: Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any = None
    ) -> dist.Work:
        """Receive what :attr:`others` say, or a repetition of what this process sends."""
        note("all_to_all", own, output, self)
        world = self._size == dist.get_world_size()
        parts = SimulatedGroup.others(own, list(input_sizes)) if SimulatedGroup.others is not None and world else None
        if parts is None:
            _repeat(output, own)
        else:
            output.copy_(torch.cat(parts).view_as(output))
        return compat.finished_work([output])


def _repeat(output: Tensor, own: Tensor) -> None:
    """Fill ``output`` with repetitions of ``own``; zeros if that is empty."""
    flat, source = output.view(-1), own.reshape(-1)
    if not len(source):
        flat.zero_()
        return
    whole = len(flat) // len(source) * len(source)
    flat[:whole].view(-1, len(source)).copy_(source)
    flat[whole:].copy_(source[: len(flat) - whole])


def _create(store: dist.Store, rank: int, size: int, timeout: Any) -> SimulatedGroup:
    return SimulatedGroup(rank, size)


@contextmanager
def simulated_processes(rank: int, world_size: int, per_host: int) -> Iterator[None]:
    """Let this process be number ``rank`` of ``world_size``, of which ``per_host`` are on each host.

    Every process makes the same choices, so an object that another one broadcasts is what this one has.
    """
    if not hasattr(dist.Backend, BACKEND.upper()):
        dist.Backend.register_backend(BACKEND, _create, devices=["cpu"])
    before = {name: os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK")}
    broadcast, host_groups = dist.broadcast_object_list, compat.set_host_groups(None, None)
    os.environ.update(LOCAL_WORLD_SIZE=str(per_host), LOCAL_RANK=str(rank % per_host))
    dist.broadcast_object_list = _keep_objects  # type: ignore[assignment]
    try:
        dist.init_process_group(BACKEND, store=dist.HashStore(), rank=rank, world_size=world_size)
        with compat.sharded_tensors_of_one_process():
            yield
    finally:
        dist.broadcast_object_list = broadcast
        compat.set_host_groups(*host_groups)
        if dist.is_initialized():
            dist.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _keep_objects(objects: Sequence[Any], *arguments: Any, **options: Any) -> None:
    """Leave ``objects`` as they are."""


@contextmanager
def answered_by(others: Others) -> Iterator[None]:
    """Let ``others`` answer the all-to-alls of the whole world."""
    before, SimulatedGroup.others = SimulatedGroup.others, others
    try:
        yield
    finally:
        SimulatedGroup.others = before
