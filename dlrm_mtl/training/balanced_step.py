"""A training step with gradient balancing: one backward pass per task over each forward pass, then one combined gradient.

With ``every: k`` only each k-th step is like that. The steps between take one backward pass of the tasks' losses, weighted by
the coefficients of the last balanced step, and a short one for the parameters of single tasks, whose gradient has no weight.

Tables and dense parameters are treated alike: each task's gradient is that of the global batch. Inner products, and the
coefficients computed from them, are the same on every process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlrm_mtl.balancing import BalanceReport, gram_of, not_finite_tasks
from dlrm_mtl.balancing.base import task_coefficients
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.phases import phase
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.embeddings.task_gradients import TaskGradients
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.training.balancing_state import GradientBalancing, slices
from dlrm_mtl.training.sharded_model import ShardedModel
from dlrm_mtl.training.step import MicroBatch, TrainingStep


class BalancedStep(TrainingStep):
    """Training step that sets the balanced combination of the tasks' gradients as ordinary gradients for the optimizers.

    Args:
        config: configuration of the run.
        process: this process.
        model: the sharded model, with ``balancing``.
        optimizers: optimizers of all its parameters.
    """

    def __init__(self, config: RunConfig, process: Process, model: ShardedModel, optimizers: Optimizers) -> None:
        super().__init__(config, process, model, optimizers)
        assert model.balancing is not None
        self.balancing: GradientBalancing = model.balancing
        self.parameters = model.dense_parameters()
        self.tasks = list(self.balancing.methods.tasks)
        self._figures: dict[str, float] = {}
        self._balanced = True
        self._device = process.device
        self._features: Tensor | None = None
        self._cotangents: list[tuple[Tensor, list[Tensor]]] = []
        self._flat: Tensor | None = None
        self._tables: TaskGradients | None = None
        self._weighted: TaskGradients | None = None
        if self.balancing.level == "parameters":
            penalised = model.penalty(torch.zeros(1, len(self.tasks), device=self._device)) is not None
            self._tables = TaskGradients(optimizers.sparse, len(self.tasks) + penalised)
            self._weighted = TaskGradients(optimizers.sparse, 1)
        self._columns = self._columns_by_table()
        rates = optimizers.sparse.rates
        self._frozen = [index for index, table in enumerate(self.balancing.tables) if rates[table] == 0]
        model.ranker.lookup.register_forward_hook(self._keep)

    def differentiate(
        self, pieces: Sequence[MicroBatch], totals: Tensor, rows: Tensor, step: int, following: Batch | None = None
    ) -> Tensor:
        """Compute each task's gradients and combine them; otherwise like the plain step."""
        self._balanced = step % self.balancing.every == 0
        if not self._balanced:
            return self._differentiate_weighted(pieces, totals, rows, step, following)
        parts = torch.zeros_like(totals)
        with self._gradients_apart():
            for number, piece in enumerate(pieces):
                # The ranker alone bypasses DDP: gradients are reduced before they are compared.
                logits = self.logits(self.model.ranker, pieces, step, number, following)
                with phase("losses"):
                    terms, part = self.losses(logits, piece.labels, piece.weights, totals, len(pieces))
                    penalty = self.penalty(logits, piece, rows)
                with phase("backward"):
                    self._backward([*terms] if penalty is None else [*terms, penalty])
                parts += part
            with phase("balancing"):
                self._combine(parts, step)
        return parts

    def after_update(self, pieces: Sequence[MicroBatch], parts: Tensor, totals: Tensor, step: int) -> None:
        """Update task weights, and pass the tasks' losses after the update to methods that need them."""
        super().after_update(pieces, parts, totals, step)
        if self._balanced and self.balancing.methods.needs_losses_after:
            losses = self._losses(pieces, totals, step).double()
            dist.all_reduce(losses)
            self.balancing.methods.after(losses)

    def rehearse(self, batch: Batch) -> None:
        """Do nothing: gradients are not reduced by DDP here."""

    def figures(self) -> dict[str, float]:
        """Scalars of the last step for the log, besides its losses."""
        return {**super().figures(), **self._figures}

    @contextmanager
    def _gradients_apart(self) -> Iterator[None]:
        """Context in which the tasks' gradients are kept separate until they are combined."""
        try:
            with self._tables.per_task() if self._tables else nullcontext():
                yield
        finally:
            self._features, self._flat, self._cotangents = None, None, []

    @torch.no_grad()
    def _losses(self, pieces: Sequence[MicroBatch], totals: Tensor, step: int) -> Tensor:
        """This process's parts of the tasks' losses [T] with the current weights."""
        parts = torch.zeros_like(totals)
        for number, (batch, labels, weights) in enumerate(pieces):
            self.set_clock(step, number)
            parts += self.losses.parts(self.model.module(batch), labels, weights, totals)
        return parts

    def _backward(self, losses: list[Tensor]) -> None:
        """Add a micro-batch's gradients to those of each of the tasks' ``losses``; the penalty, if any, is the last loss."""
        cotangents, features = self._gradients(losses), self._features
        assert features is not None
        if self._tables:
            self._tables.backward([features], [[cotangent] for cotangent in cotangents])
        else:
            self._cotangents.append((features, cotangents))

    def _combine(self, parts: Tensor, step: int) -> None:
        """Combine the tasks' gradients; ``parts`` [T] are this process's parts of their losses."""
        dense, count = self._dense_gradients(), len(self.tasks)
        assert self._flat is not None
        if self._tables:
            grams = self._tables.grams()[:, :count, :count]
        else:
            grams = sum((self._feature_grams(cotangents) for _, cotangents in self._cotangents), torch.zeros(()))
        grams[self._frozen] = 0.0
        report = self._balance(dense, grams, parts, step)
        coefficients = report.coefficients if report else torch.ones(len(self.balancing.methods.tensors), count)
        rest = len(self._flat) - count  # the penalty's gradient, if any, is added unchanged
        coefficients = torch.cat([coefficients, coefficients.new_ones(len(coefficients), rest)], dim=1)
        own, of_tables = coefficients.split([len(dense), len(self.balancing.tables)])
        if self._tables:
            self._tables.combine(of_tables)
        for features, cotangents in self._cotangents:
            features.backward(self._combined_cotangent(cotangents, of_tables))
        for index, (parameter, gradients) in enumerate(zip(self.parameters.values(), dense, strict=True)):
            parameter.grad = self._combined(index, gradients, own[index]).view_as(parameter)

    def _differentiate_weighted(
        self, pieces: Sequence[MicroBatch], totals: Tensor, rows: Tensor, step: int, following: Batch | None
    ) -> Tensor:
        """Compute the gradient of the losses weighted by the kept coefficients; like :meth:`differentiate` otherwise."""
        parts = torch.zeros_like(totals)
        weights = self.balancing.kept.values.to(self._device, torch.float32)
        parameters = list(self.parameters.values())
        masks = [self.balancing.shared(index) for index in range(len(parameters))]
        own = [index for index, mask in enumerate(masks) if not mask.all()]  # hold slices of single tasks
        chosen = [*parameters, *(parameters[index] for index in own)]
        sums = [torch.zeros_like(parameter) for parameter in chosen]
        with self._weighted.per_task() if self._weighted else nullcontext():
            for number, piece in enumerate(pieces):
                logits = self.logits(self.model.ranker, pieces, step, number, following)
                with phase("losses"):
                    terms, part = self.losses(logits, piece.labels, piece.weights, totals, len(pieces))
                    penalty = self.penalty(logits, piece, rows)
                    plain, weighted = terms.sum(), (terms * weights).sum()
                    if penalty is not None:
                        plain, weighted = plain + penalty, weighted + penalty
                with phase("backward"):
                    features = self._features
                    assert features is not None
                    of_tasks: Sequence[Tensor | None] = ()
                    if own:
                        of_tasks = torch.autograd.grad(
                            plain, chosen[len(parameters) :], retain_graph=True, allow_unused=True
                        )
                    cotangent, *found = torch.autograd.grad(weighted, [features, *parameters], allow_unused=True)
                    for total, gradient in zip(sums, [*found, *of_tasks], strict=True):
                        if gradient is not None:
                            total += gradient
                    cotangent = torch.zeros_like(features) if cotangent is None else cotangent
                    if self._weighted:
                        self._weighted.backward([features], [[cotangent]])
                    else:
                        features.backward(cotangent)
                parts += part
            if self._weighted:
                self._weighted.add_up()
        self._features = None
        flat = torch.cat([parts.new_zeros(0), *(total.flatten() for total in sums)])
        losses = parts.double()
        dist.all_reduce(losses)
        if dist.get_world_size() > 1:
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        pairs = zip(self.tasks, losses.tolist(), strict=True)
        self.not_finite, self._figures = [task for task, loss in pairs if not math.isfinite(loss)], {}
        gradients = [part.view_as(of) for part, of in zip(flat.split([s.numel() for s in sums]), chosen, strict=True)]
        for parameter, gradient in zip(parameters, gradients, strict=False):
            parameter.grad = gradient
        for index, gradient in zip(own, gradients[len(parameters) :], strict=True):
            shape, mask = (slices(gradient), -1), masks[index].unsqueeze(1)
            shared = gradients[index].reshape(shape)
            parameters[index].grad = torch.where(mask, shared, gradient.reshape(shape)).view_as(gradient)
        return parts

    def _keep(self, module: nn.Module, arguments: object, output: Tensor) -> None:
        self._features = output if output.requires_grad else None

    def _gradients(self, losses: list[Tensor]) -> list[Tensor]:
        """Gradient of the features [B, W] for each loss; gradients of dense parameters are accumulated."""
        assert self._features is not None
        parameters = list(self.parameters.values())
        sizes = [parameter.numel() for parameter in parameters]
        first_piece = self._flat is None
        if self._flat is None:
            self._flat = torch.zeros(len(losses), sum(sizes), device=self._device)
        cotangents = []
        for number, loss in enumerate(losses):
            with phase("backward of a task"):
                first, *found = torch.autograd.grad(
                    loss, [self._features, *parameters], retain_graph=number + 1 < len(losses), allow_unused=True
                )
            cotangents.append(torch.zeros_like(self._features) if first is None else first)
            for part, gradient in zip(self._flat[number].split(sizes), found, strict=True):
                if gradient is not None:
                    (part.copy_ if first_piece else part.add_)(gradient.reshape(-1))
        return cotangents

    def _dense_gradients(self) -> list[Tensor]:
        """Gradients [K, n, m] of the losses for each dense parameter, over the global batch."""
        assert self._flat is not None
        if dist.get_world_size() > 1:
            dist.all_reduce(self._flat)
            self._flat /= dist.get_world_size()
        parameters = list(self.parameters.values())
        parts = self._flat.split([parameter.numel() for parameter in parameters], dim=1)
        shapes = [(len(self._flat), slices(parameter), -1) for parameter in parameters]
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _balance(self, dense: list[Tensor], tables: Tensor, parts: Tensor, step: int) -> BalanceReport | None:
        """Compute the coefficients by the methods; None if a task's gradient is not finite, with its name in ``not_finite``."""
        count = len(self.tasks)
        exchanged = torch.cat([tables.flatten(), parts.double().cpu()]).to(self._device)
        dist.all_reduce(exchanged)
        sums, losses = exchanged.cpu().split([tables.numel(), count])
        masks = [self._shared_slices(index, gradients) for index, gradients in enumerate(dense)]
        own = [gram_of(gradients[:count, mask]).cpu() for gradients, mask in zip(dense, masks, strict=True)]
        grams = torch.stack([*own, *sums.view(-1, count, count)])
        # A loss that is not finite spoils the gradients of tasks computed together with it.
        lost = [task for task, loss in zip(self.tasks, losses.tolist(), strict=True) if not math.isfinite(loss)]
        self.not_finite, self._figures = lost or not_finite_tasks(grams, self.tasks), {}
        if self.not_finite:
            return None
        for index, mask in enumerate(masks):
            self.balancing.shared(index).copy_(mask)
        report = self.balancing.methods.step(grams, losses, step)
        if self.balancing.every > 1:
            self.balancing.kept.values.copy_(task_coefficients(report.coefficients, grams))
        self._figures = {f"balancing/{name}": value for name, value in report.figures.items()}
        return report

    def _shared_slices(self, index: int, gradients: Tensor) -> Tensor:
        """Mask of the shared slices of a dense parameter, given this step's gradients [K, n, m]."""
        used = (gradients[: len(self.tasks)] != 0).any(dim=2)
        return self.balancing.shared(index) | (used.sum(dim=0) >= 2)

    def _combined(self, index: int, gradients: Tensor, coefficients: Tensor) -> Tensor:
        """Combined gradient of a dense parameter [n, m]; slices of single tasks get the plain sum."""
        weights = coefficients.to(gradients)
        balanced = torch.einsum("knm,k->nm", gradients, weights)
        mask = self.balancing.shared(index)
        if mask.all():
            return balanced
        return torch.where(mask.unsqueeze(1), balanced, gradients.sum(dim=0))

    def _columns_by_table(self) -> list[list[slice]]:
        """Columns of the features from each table, in the order of the methods' tables."""
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
        # Losses are multiplied by the number of processes, since gradients of dense parameters are averaged.
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
