"""Gradients of several tasks for sharded tables: kept apart, compared by their inner products, combined.

One forward pass, and a backward pass per task from the output of the tables on. The tasks' gradients cross the processes as
ordinary ones do, but are summed by row together, so that ids are sorted once. Inner products are taken on the shards and
added up over processes: T x T numbers a table move, and no row does.

Shapes: T tasks, and further gradients that take no part in the balance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from dlrm_mtl.balancing.gram import gram_of
from dlrm_mtl.embeddings.collecting import CollectingTables, wider
from dlrm_mtl.embeddings.kernels.dispatch import kernels_for
from dlrm_mtl.embeddings.kernels.layout import RowGradients, TableGroup
from dlrm_mtl.embeddings.shards import LocalTables
from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer


class TaskGradients:
    """The gradients that T tasks have for the tables of a model, until they are combined into one.

    Args:
        optimizer: of the tables; combined gradients are handed to it, and its next step applies them.
        tasks: how many gradients each forward pass gets back.
    """

    def __init__(self, optimizer: TwoPhaseOptimizer, tasks: int) -> None:
        self.tasks = tasks
        self.names = optimizer.names
        """The tables by full name, in the order of what :meth:`grams` returns."""
        self._parts: list[_Sharded | _Replicated] = []
        for local in optimizer.tables:
            kind = _Sharded if isinstance(local.source, CollectingTables) else _Replicated
            self._parts.append(kind(local, wider(local.group, tasks), tasks))
        self._lookups = [collection._lookups for collection in optimizer.collections.values()]

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Keep the gradients of forward passes inside apart; :meth:`backward` is to be called inside, too.

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
        """Send the tasks' gradients of the tables' outputs back to the tables; to be called on every process.

        Args:
            outputs: what the tables gave to the rest of the model; all tables lie behind them.
            gradients: for each of T tasks the gradients of ``outputs``.
        """
        with record_function("## tables: backward of tasks ##"):
            for task, gradient in enumerate(gradients):
                torch.autograd.backward(outputs, gradient, retain_graph=task + 1 < self.tasks)
                for part in self._parts:
                    part.came_back(task)

    def grams(self) -> Tensor:
        """[tables, T, T] float64 on the CPU: this process's parts of the inner products, which add up over processes."""
        with record_function("## tables: inner products ##"):
            result = torch.zeros(len(self.names), self.tasks, self.tasks, dtype=torch.float64)
            number = {name: index for index, name in enumerate(self.names)}
            for part in self._parts:
                part.collect()
                for index, shard in enumerate(part.local.shards):
                    result[number[shard.table]] += part.gram(index).cpu()
            return result

    def combine(self, coefficients: Tensor) -> None:
        """Hand sum_t coefficients[table, t] gradient_t to the optimizer; [tables, T], the same on every process."""
        with record_function("## tables: combine tasks ##"):
            number = {name: index for index, name in enumerate(self.names)}
            for part in self._parts:
                rows = [coefficients[number[shard.table]] for shard in part.local.shards]
                part.combine([row.to(part.local.group.weights.device, torch.float32) for row in rows])


@dataclass
class _Sharded:
    """Shards that collect gradients in their lookups."""

    local: LocalTables
    wide: TableGroup
    tasks: int
    collected: RowGradients | None = None
    """Rows of T gradients, one behind the other."""

    def begin(self) -> None:
        self._tables.apart = []

    def end(self) -> None:
        self._tables.apart = None

    def came_back(self, task: int) -> None:
        """The lookups have kept it."""

    def collect(self) -> None:
        parts = [lookup.collect(self.wide) for lookup in self._tables.apart or []]
        self._tables.apart = []
        self.collected = kernels_for(self.wide.weights.device).merge(self.wide, parts) if parts else None

    def gram(self, index: int) -> Tensor:
        if self.collected is None:
            return torch.zeros(self.tasks, self.tasks, dtype=torch.float64)
        return gram_of(self._by_task(self.collected, index).transpose(0, 1))

    def combine(self, coefficients: list[Tensor]) -> None:
        if self.collected is None:
            return
        sums, squares = [], []
        for index, factors in enumerate(coefficients):
            summed = torch.einsum("utd,t->ud", self._by_task(self.collected, index), factors)
            sums.append(summed.reshape(-1))
            squares.append(summed.square().sum(dim=1))
        whole = RowGradients(self.collected.rows, self.collected.table_offsets, torch.cat(sums), torch.cat(squares))
        self._tables.pending.append(whole)
        self.collected = None

    def _by_task(self, collected: RowGradients, index: int) -> Tensor:
        """[U_t, T, D_t]."""
        return collected.gradient(self.wide, index).unflatten(1, (self.tasks, int(self.local.group.dims[index])))

    @property
    def _tables(self) -> CollectingTables:
        assert isinstance(self.local.source, CollectingTables)
        return self.local.source


@dataclass
class _Replicated:
    """Tables of which every process holds a full copy, and a dense gradient."""

    local: LocalTables
    wide: TableGroup
    tasks: int
    gradients: Tensor | None = None
    """[T, size of the weights]."""

    def begin(self) -> None:
        self.gradients = torch.zeros(self.tasks, self._weights.numel(), device=self._weights.device)

    def end(self) -> None:
        self.gradients = None

    def came_back(self, task: int) -> None:
        assert self.gradients is not None
        if self._weights.grad is not None:
            self.gradients[task] += self._weights.grad.flatten()
            self._weights.grad = None

    def collect(self) -> None:
        assert self.gradients is not None
        if dist.get_world_size() > 1:
            dist.all_reduce(self.gradients)
            self.gradients /= dist.get_world_size()

    def gram(self, index: int) -> Tensor:
        assert self.gradients is not None
        if dist.get_rank():  # all processes hold the same
            return torch.zeros(self.tasks, self.tasks, dtype=torch.float64)
        start = int(self.local.group.weight_offsets[index])
        size = self.local.group.table(index).numel()
        return gram_of(self.gradients[:, start : start + size])

    def combine(self, coefficients: list[Tensor]) -> None:
        assert self.gradients is not None
        sizes = [self.local.group.table(index).numel() for index in range(len(coefficients))]
        parts = self.gradients.split(sizes, dim=1)
        combined = [factors @ part for factors, part in zip(coefficients, parts, strict=True)]
        self._weights.grad = torch.cat(combined).view_as(self._weights)

    @property
    def _weights(self) -> nn.Parameter:
        assert isinstance(self.local.source, nn.Parameter)
        return self.local.source
