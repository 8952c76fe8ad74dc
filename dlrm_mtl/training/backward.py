"""Backward passes. With gradient balancing: one per task over each forward pass, then one combined gradient.

Tables and dense parameters are treated alike: each task's gradient is that of the global batch, inner products are the same
on every process, and so are the coefficients that come of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import record_function

from dlrm_mtl.balancing import BalanceReport, gram_of, not_finite_tasks
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.embeddings.task_gradients import TaskGradients
from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer
from dlrm_mtl.training.balancing_state import GradientBalancing, slices
from dlrm_mtl.training.build import ShardedModel


class PlainBackward:
    """One backward pass of the sum of all losses; the same interface as :class:`BalancedBackward`."""

    figures: Mapping[str, float] = MappingProxyType({})
    not_finite: Sequence[str] = ()
    needs_losses_after = False

    def __init__(self, model: ShardedModel) -> None:
        self.model = model

    def around(self) -> AbstractContextManager[None]:
        """Nothing is to be prepared."""
        return nullcontext()

    def predict(self, batch: Batch) -> Tensor:
        """Logits [B, T]."""
        logits: Tensor = self.model.module(batch)
        return logits

    def backward(self, terms: Tensor, penalty: Tensor | None) -> None:
        """Add a micro-batch's gradients to those of all parameters."""
        loss = terms.sum() if penalty is None else terms.sum() + penalty
        loss.backward()  # type: ignore[no-untyped-call]

    def finish(self, parts: Tensor, step: int) -> None:
        """The gradients are complete."""

    def after(self, parts: Tensor) -> None:
        """Nothing depends on the losses after the update."""


class BalancedBackward:
    """Puts the combined gradients where the optimizers expect the ordinary ones.

    Args:
        model: the sharded model.
        balancing: a part of it.
        sparse: the optimizer of its tables.
    """

    def __init__(self, model: ShardedModel, balancing: GradientBalancing, sparse: TwoPhaseOptimizer) -> None:
        self.model = model
        self.balancing = balancing
        self.parameters = model.dense_parameters()
        self.tasks = list(balancing.methods.tasks)
        self.figures: dict[str, float] = {}
        """What the log should say of the last step."""
        self.not_finite: list[str] = []
        """The tasks whose gradient was not finite in the last step."""
        self._device = next(iter(self.parameters.values())).device
        self._features: Tensor | None = None
        self._cotangents: list[tuple[Tensor, list[Tensor]]] = []
        self._flat: Tensor | None = None
        self._tables: TaskGradients | None = None
        if balancing.level == "parameters":
            penalised = model.penalty(torch.zeros(1, len(self.tasks), device=self._device)) is not None
            self._tables = TaskGradients(sparse, len(self.tasks) + penalised)
        self._columns = self._columns_by_table()
        model.ranker.lookup.register_forward_hook(self._keep)

    @property
    def needs_losses_after(self) -> bool:
        """Whether :meth:`after` is to be called after every update that was applied."""
        return self.balancing.methods.needs_losses_after

    @contextmanager
    def around(self) -> Iterator[None]:
        """To be put around the forward and backward passes of a step and :meth:`finish`."""
        try:
            with self._tables.apart() if self._tables else nullcontext():
                yield
        finally:
            self._features, self._flat, self._cotangents = None, None, []

    def predict(self, batch: Batch) -> Tensor:
        """Logits [B, T]. DDP is passed by: each task's gradient is reduced here, before they are compared."""
        logits: Tensor = self.model.ranker(batch)
        return logits

    def backward(self, terms: Tensor, penalty: Tensor | None) -> None:
        """Add a micro-batch's gradients to those of each task; to be called on every process.

        Args:
            terms: [T] what each task adds to the loss.
            penalty: what is added to the loss on no task's account; its gradient is added as it is.
        """
        losses = [*terms, penalty] if penalty is not None else [*terms]
        cotangents, features = self._gradients(losses), self._features
        assert features is not None
        if self._tables:
            self._tables.backward([features], [[cotangent] for cotangent in cotangents])
        else:
            self._cotangents.append((features, cotangents))

    def finish(self, parts: Tensor, step: int) -> None:
        """Combine the tasks' gradients; to be called on every process.

        Args:
            parts: [T] this process's parts of the tasks' losses.
            step: number of the step.
        """
        dense, count = self._dense_gradients(), len(self.tasks)
        if self._tables:
            grams = self._tables.grams()[:, :count, :count]
        else:
            grams = sum((self._feature_grams(cotangents) for _, cotangents in self._cotangents), torch.zeros(()))
        report = self._balance(dense, grams, parts, step)
        coefficients = report.coefficients if report else torch.ones(len(self.balancing.methods.tensors), count)
        rest = len(dense[0]) - count  # the penalty's gradient, if there is one
        coefficients = torch.cat([coefficients, coefficients.new_ones(len(coefficients), rest)], dim=1)
        own, of_tables = coefficients.split([len(dense), len(self.balancing.tables)])
        if self._tables:
            self._tables.combine(of_tables)
        for features, cotangents in self._cotangents:
            features.backward(self._combined_cotangent(cotangents, of_tables))
        for index, (parameter, gradients) in enumerate(zip(self.parameters.values(), dense, strict=True)):
            parameter.grad = self._combine(index, gradients, own[index]).view_as(parameter)

    @torch.no_grad()
    def after(self, parts: Tensor) -> None:
        """Tell the methods the tasks' losses on the same batch after the update: [T], this process's parts."""
        losses = parts.double()
        dist.all_reduce(losses)
        self.balancing.methods.after(losses)

    def _keep(self, module: nn.Module, arguments: object, output: Tensor) -> None:
        self._features = output if output.requires_grad else None

    def _gradients(self, losses: list[Tensor]) -> list[Tensor]:
        """For each loss the gradient of the features [B, W]; those of dense parameters are added to what there is of them."""
        assert self._features is not None
        parameters = list(self.parameters.values())
        sizes = [parameter.numel() for parameter in parameters]
        first_piece = self._flat is None
        if self._flat is None:
            self._flat = torch.zeros(len(losses), sum(sizes), device=self._device)
        cotangents = []
        for number, loss in enumerate(losses):
            with record_function("## backward of a task ##"):
                first, *found = torch.autograd.grad(
                    loss, [self._features, *parameters], retain_graph=number + 1 < len(losses), allow_unused=True
                )
            cotangents.append(torch.zeros_like(self._features) if first is None else first)
            for part, gradient in zip(self._flat[number].split(sizes), found, strict=True):
                if gradient is not None:
                    (part.copy_ if first_piece else part.add_)(gradient.reshape(-1))
        return cotangents

    def _dense_gradients(self) -> list[Tensor]:
        """For each dense parameter the losses' gradients [K, n, m], of the global batch."""
        assert self._flat is not None
        if dist.get_world_size() > 1:
            dist.all_reduce(self._flat)
            self._flat /= dist.get_world_size()
        parameters = list(self.parameters.values())
        parts = self._flat.split([parameter.numel() for parameter in parameters], dim=1)
        shapes = [(len(self._flat), slices(parameter), -1) for parameter in parameters]
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _balance(self, dense: list[Tensor], tables: Tensor, parts: Tensor, step: int) -> BalanceReport | None:
        """What the methods make of the inner products; None if a task's gradient is not finite, which is then named."""
        count = len(self.tasks)
        exchanged = torch.cat([tables.flatten(), parts.double().cpu()]).to(self._device)
        dist.all_reduce(exchanged)
        sums, losses = exchanged.cpu().split([tables.numel(), count])
        masks = [self._shared_slices(index, gradients) for index, gradients in enumerate(dense)]
        own = [gram_of(gradients[:count, mask]).cpu() for gradients, mask in zip(dense, masks, strict=True)]
        grams = torch.cat([torch.stack(own), sums.view(-1, count, count)])
        # A loss that is not finite spoils the gradients of tasks that are computed together with it.
        lost = [task for task, loss in zip(self.tasks, losses.tolist(), strict=True) if not math.isfinite(loss)]
        self.not_finite, self.figures = lost or not_finite_tasks(grams, self.tasks), {}
        if self.not_finite:
            return None
        for index, mask in enumerate(masks):
            self.balancing.shared(index).copy_(mask)
        report = self.balancing.methods.step(grams, losses, step)
        self.figures = {f"balancing/{name}": value for name, value in report.figures.items()}
        return report

    def _shared_slices(self, index: int, gradients: Tensor) -> Tensor:
        """The slices of a dense parameter that are shared, with this step's gradients [K, n, m]."""
        used = (gradients[: len(self.tasks)] != 0).any(dim=2)
        return self.balancing.shared(index) | (used.sum(dim=0) >= 2)

    def _combine(self, index: int, gradients: Tensor, coefficients: Tensor) -> Tensor:
        """The combined gradient of a dense parameter [n, m]; slices of single tasks get the plain sum."""
        weights = coefficients.to(gradients)
        balanced = torch.einsum("knm,k->nm", gradients, weights)
        mask = self.balancing.shared(index)
        if mask.all():
            return balanced
        return torch.where(mask.unsqueeze(1), balanced, gradients.sum(dim=0))

    def _columns_by_table(self) -> list[list[slice]]:
        """The columns of the features that come from each table, in the order of the methods' tables."""
        lookup = self.model.ranker.lookup
        result: dict[str, list[slice]] = {}
        start, widths = 0, iter(lookup.widths)
        for table in lookup.table_set.configs:
            for _ in table.feature_names:
                width = next(widths)
                result.setdefault(table.name, []).append(slice(start, start + width))
                start += width
        return [result[name.rpartition(".")[2]] for name in self.balancing.tables]

    def _feature_grams(self, cotangents: list[Tensor]) -> Tensor:
        """[tables, T, T] float64: this process's parts of the inner products at the features."""
        stacked = torch.stack(cotangents[: len(self.tasks)]).detach()
        grams = [torch.stack([gram_of(stacked[:, :, part]) for part in parts]).sum(dim=0) for parts in self._columns]
        # Losses are multiplied by the number of processes, which averages the gradients of everything else.
        return torch.stack(grams).cpu() / dist.get_world_size() ** 2

    def _combined_cotangent(self, cotangents: list[Tensor], coefficients: Tensor) -> Tensor:
        result = torch.empty_like(cotangents[0])
        for parts, weights in zip(self._columns, coefficients.to(result), strict=True):
            for part in parts:
                pairs = zip(cotangents, weights, strict=True)
                result[:, part] = sum(
                    (weight * cotangent[:, part] for cotangent, weight in pairs), result.new_zeros(())
                )
        return result
