"""Gradients of several tasks for sharded tables: kept per task, compared by inner products, combined.

There is one forward pass, and a backward pass per task from the tables' outputs. The tasks' gradients are exchanged between
processes like ordinary ones, but are summed by row together, so that ids are sorted once. Inner products are computed on
the shards and added up over processes: only T x T numbers per table are exchanged, and no rows.

Shapes: T tasks, including further gradients that are not balanced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dlrm_mtl.core.gram import gram_of
from dlrm_mtl.core.phases import phase
from dlrm_mtl.embeddings.kernels.dispatch import kernels_for
from dlrm_mtl.embeddings.kernels.layout import TableGroup
from dlrm_mtl.embeddings.torchrec.lookups import CollectingTables, PendingLookup, widen
from dlrm_mtl.embeddings.torchrec.shards import LocalTables
from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer


class TaskGradients:
    """Gradients of T tasks for the tables of a model, until they are combined into one.

    Args:
        optimizer: optimizer of the tables; its next step applies the combined gradients.
        tasks: number of gradients of each forward pass.
    """

    def __init__(self, optimizer: TwoPhaseOptimizer, tasks: int) -> None:
        self.tasks = tasks
        self.names = optimizer.names
        """Full names of the tables, in the order of :meth:`grams`."""
        self._parts: list[_Sharded | _Replicated] = []
        for local in optimizer.tables:
            kind = _Sharded if isinstance(local.source, CollectingTables) else _Replicated
            self._parts.append(kind(local, widen(local.group, tasks), tasks))
        number = {name: index for index, name in enumerate(self.names)}
        self._own = [
            torch.tensor([number[s.table] for s in part.local.shards], dtype=torch.int64) for part in self._parts
        ]
        self._lookups = [collection._lookups for collection in optimizer.collections.values()]

    @contextmanager
    def per_task(self) -> Iterator[None]:
        """Context in which gradients of forward passes are kept per task; :meth:`backward` must be called inside.

        The model must be called without its DDP wrapper, which would wait for gradients to reduce.
        """
        # TorchRec wraps lookups of replicated tables in DDP, which would reduce each task's gradient, and only once.
        wrapped = [list(lookups) for lookups in self._lookups]
        for part in self._parts:
            part.begin()
        for lookups in self._lookups:
            lookups[:] = [x.module if isinstance(x, DistributedDataParallel) else x for x in lookups]
        try:
            yield
        finally:
            for part in self._parts:
                part.end()
            for lookups, before in zip(self._lookups, wrapped, strict=True):
                lookups[:] = before

    def backward(self, outputs: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]]) -> None:
        """Send the tasks' gradients of the tables' outputs back to the tables. Every process must call this.

        Args:
            outputs: outputs of the tables; all tables must be reachable from them.
            gradients: gradients of ``outputs``, for each of T tasks.
        """
        with phase("tables: backward of tasks"):
            for task, gradient in enumerate(gradients):
                torch.autograd.backward(outputs, gradient, retain_graph=task + 1 < self.tasks)
                for part in self._parts:
                    part.on_output_gradient(task)

    def grams(self) -> Tensor:
        """[tables, T, T] float64 on the CPU: this process's parts of the inner products, to be summed over processes."""
        with phase("tables: inner products"):
            result = torch.zeros(len(self.names), self.tasks, self.tasks, dtype=torch.float64)
            for part, own in zip(self._parts, self._own, strict=True):
                result.index_add_(0, own, part.grams().cpu())
            return result

    def combine(self, coefficients: Tensor) -> None:
        """Pass sum_t coefficients[table, t] gradient_t to the optimizer; [tables, T], the same on every process."""
        with phase("tables: combine tasks"):
            for part, own in zip(self._parts, self._own, strict=True):
                part.combine(coefficients[own].to(part.local.group.weights.device, torch.float32))

    def add_up(self) -> None:
        """Pass the plain sum of the gradients to the optimizer, without inner products."""
        with phase("tables: combine tasks"):
            for part in self._parts:
                part.reduce()
                device = part.local.group.weights.device
                part.combine(torch.ones(part.local.group.tables, self.tasks, device=device))


@dataclass
class _Sharded:
    """Shards whose lookups collect gradients."""

    local: LocalTables
    wide: TableGroup
    tasks: int
    lookups: list[PendingLookup] = field(default_factory=list)

    def begin(self) -> None:
        self._tables.waiting = self.lookups = []

    def end(self) -> None:
        self._tables.waiting, self.lookups = None, []

    def on_output_gradient(self, task: int) -> None:
        """Do nothing: the lookups keep the gradient."""

    def reduce(self) -> None:
        """Do nothing: gradients were summed over processes on their way to the shards."""

    def grams(self) -> Tensor:
        parts = [lookup.collect(self.wide) for lookup in self.lookups]
        if not parts:
            return torch.zeros(len(self.local.shards), self.tasks, self.tasks, dtype=torch.float64)
        kernels = kernels_for(self.wide.weights.device)
        whole = parts[0] if len(parts) == 1 else kernels.merge(self.wide, parts)
        return kernels.grams(self.wide, whole, self.tasks)

    def combine(self, coefficients: Tensor) -> None:
        self._tables.pending += [
            lookup.combined(self.local.group, coefficients).collect(self.local.group) for lookup in self.lookups
        ]
        self.lookups.clear()

    @property
    def _tables(self) -> CollectingTables:
        assert isinstance(self.local.source, CollectingTables)
        return self.local.source


@dataclass
class _Replicated:
    """Replicated tables, with a dense gradient."""

    local: LocalTables
    wide: TableGroup
    tasks: int
    gradients: Tensor | None = None
    """[T, size of the weights]."""

    def begin(self) -> None:
        self.gradients = torch.zeros(self.tasks, self._weights.numel(), device=self._weights.device)

    def end(self) -> None:
        self.gradients = None

    def on_output_gradient(self, task: int) -> None:
        assert self.gradients is not None
        if self._weights.grad is not None:
            self.gradients[task] += self._weights.grad.flatten()
            self._weights.grad = None

    def reduce(self) -> None:
        assert self.gradients is not None
        if dist.get_world_size() > 1:
            dist.all_reduce(self.gradients)
            self.gradients /= dist.get_world_size()

    def grams(self) -> Tensor:
        self.reduce()
        assert self.gradients is not None
        first = dist.get_rank() == 0  # all processes hold the same, which counts once
        return torch.stack([gram_of(part if first else part[:, :0]) for part in self._by_table(self.gradients)])

    def combine(self, coefficients: Tensor) -> None:
        assert self.gradients is not None
        parts = zip(coefficients, self._by_table(self.gradients), strict=True)
        self._weights.grad = torch.cat([factors @ part for factors, part in parts]).view_as(self._weights)

    def _by_table(self, gradients: Tensor) -> tuple[Tensor, ...]:
        sizes = [self.local.group.table(index).numel() for index in range(self.local.group.tables)]
        return gradients.split(sizes, dim=1)

    @property
    def _weights(self) -> nn.Parameter:
        assert isinstance(self.local.source, nn.Parameter)
        return self.local.source
