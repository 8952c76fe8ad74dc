"""A training step: forward, losses, backward, update. With gradient balancing: :mod:`dlrm_mtl.training.balanced_step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.embeddings.two_phase import StepReport
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.tasks.losses import TaskLosses
from dlrm_mtl.tasks.targets import Targets
from dlrm_mtl.training.sharded_model import ShardedModel


class MicroBatch(NamedTuple):
    """Rows of this process with what the tasks make of them."""

    batch: Batch
    labels: Tensor  # [B, T]
    weights: Tensor  # [B, T], 0 where a row does not count for a task

    @property
    def row_weights(self) -> Tensor:
        """The weight of each row where no task is in question, [B]: its largest."""
        return self.weights.amax(dim=1)


class TrainingStep:
    """Takes training steps; every process calls it with its part of the same global batch.

    Args:
        config: of the run.
        process: the one that calls.
        model: the sharded model.
        optimizers: of all its parameters.
    """

    def __init__(self, config: RunConfig, process: Process, model: ShardedModel, optimizers: Optimizers) -> None:
        self.process = process
        self.micro_batches = config.training.micro_batches
        self.model = model
        self.optimizers = optimizers
        self.targets = Targets(config.tasks, process.device)
        self.losses = TaskLosses(config.tasks, process.device, model.weighting)
        self.not_finite: list[str] = []
        """Tasks whose gradient was not finite in the last step; known only where tasks have gradients of their own."""

    def __call__(
        self, batches: Sequence[Batch], step: int, epoch: int, measure: bool = False, signal: int = 0
    ) -> tuple[Tensor, StepReport]:
        """Take step number ``step``; return this process's parts of the tasks' losses [T], and what the update did.

        Args:
            batches: this process's rows, in micro-batches.
            step: steps taken so far.
            epoch: passes over the data so far.
            measure: whether the report should also say how far coordinates moved.
            signal: the signal that this process has got, or 0; the report's flag is the one that any process has got.
        """
        self.model.ids.begin(step)
        self.losses.weighting.start(epoch)
        self.optimizers.set_learning_rate(step)
        self.optimizers.zero_grad()
        pieces = self.pieces(batches, step)
        totals, rows = self.total_weights(pieces)
        parts = self.differentiate(pieces, totals, rows, step)
        with record_function("## optimizer step ##"):
            report = self.optimizers.step(measure, signal)
        if not report.skipped:
            self.after_update(pieces, parts, totals, step)
        self.model.ids.end(keep=not report.skipped)
        return parts, report

    def differentiate(self, pieces: Sequence[MicroBatch], totals: Tensor, rows: Tensor, step: int) -> Tensor:
        """Compute the gradients of all parameters; return this process's parts of the tasks' losses [T].

        Args:
            pieces: this process's rows.
            totals: the weights of the global batch's rows for each task, summed [T].
            rows: the weights of its rows, summed.
            step: steps taken so far.
        """
        parts = torch.zeros_like(totals)
        for number, piece in enumerate(pieces):
            self.set_clock(step, number)
            with record_function("## forward ##"):
                logits = self.model.module(piece.batch)  # [B, T]
            terms, part = self.losses(logits, piece.labels, piece.weights, totals, len(pieces))
            penalty = self.penalty(logits, piece, rows)
            with record_function("## backward ##"):
                loss = terms.sum() if penalty is None else terms.sum() + penalty
                loss.backward()  # type: ignore[no-untyped-call]
            parts += part
        return parts

    def pieces(self, batches: Sequence[Batch], step: int) -> list[MicroBatch]:
        """Labels and weights for each of ``batches``, after tasks have drawn the rows that they learn from."""
        result = []
        for number, batch in enumerate(batches):
            self.set_clock(step, number)
            result.append(MicroBatch(batch, *self.targets.sampled(batch.labels, batch.weights, self.model.random)))
        return result

    def total_weights(self, pieces: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
        """The weights of the global batch's rows: summed for each task [T], and without regard to tasks []."""
        own = [torch.cat([piece.weights.sum(dim=0), piece.row_weights.sum().unsqueeze(0)]) for piece in pieces]
        sums = torch.stack(own).sum(dim=0)  # [T + 1]
        dist.all_reduce(sums)
        return sums[:-1], sums[-1]

    def penalty(self, logits: Tensor, piece: MicroBatch, rows: Tensor) -> Tensor | None:
        """A penalty that the model asks for, averaged over the global batch; multiplied as DDP divides."""
        penalty = self.model.penalty(logits)  # [B]
        if penalty is None:
            return None
        return (penalty * piece.row_weights).sum() / rows.clamp(min=1e-30) * self.process.world_size

    def after_update(self, pieces: Sequence[MicroBatch], parts: Tensor, totals: Tensor, step: int) -> None:
        """Let the task weights learn from the losses of a step that was applied; arguments as in :meth:`differentiate`."""
        self.losses.weighting.observe(parts, totals)

    def rehearse(self, batch: Batch) -> None:
        """Differentiate a batch that counts for nothing, so that sums over processes do not depend on where a run begins.

        After two backward passes DDP puts the parameters into another order. With more than two processes that is another
        order of summation, in which the first steps after a resume would differ from the same steps of an uninterrupted run.
        """
        if self.process.world_size <= 2:
            return
        buffers = {buffer: buffer.clone() for buffer in self.model.module.buffers()}
        pieces = [MicroBatch(batch, *self.targets(batch.labels, batch.weights))]
        for _ in range(2):
            self.differentiate(pieces, *self.total_weights(pieces), 0)
            self.optimizers.zero_grad()
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)

    def set_clock(self, step: int, number: int) -> None:
        """Let what is drawn for rows be that of a step's micro-batch ``number``."""
        self.model.random.step = step * self.micro_batches + number

    def figures(self) -> dict[str, float]:
        """What the log should say of the last step besides its losses."""
        return {**self.model.ids.figures}
