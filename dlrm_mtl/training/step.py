"""A training step: forward, losses, backward, update. With gradient balancing: :mod:`dlrm_mtl.training.balanced_step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.job_watch import enter_phase
from dlrm_mtl.core.phases import phase
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.embeddings.torchrec.exchange import ExchangeAhead
from dlrm_mtl.embeddings.two_phase import StepReport
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.tasks.losses import TaskLosses
from dlrm_mtl.tasks.targets import Targets
from dlrm_mtl.training.sharded_model import ShardedModel


class MicroBatch(NamedTuple):
    """Rows of this process, with labels and weights of the tasks."""

    batch: Batch
    labels: Tensor  # [B, T]
    weights: Tensor  # [B, T], 0 for a row that a task ignores

    @property
    def row_weights(self) -> Tensor:
        """Weight of each row independent of tasks, [B]: its largest one."""
        return self.weights.amax(dim=1)


def exchanges_ahead(config: RunConfig, process: Process) -> bool:
    """Return True if the ids of a micro-batch are exchanged during the one before."""
    return bool(config.training.exchange_ahead) and process.world_size > 1


class TrainingStep:
    """Training step; every process calls it with its part of the same global batch.

    Args:
        config: configuration of the run.
        process: this process.
        model: the sharded model.
        optimizers: optimizers of all its parameters.
    """

    def __init__(self, config: RunConfig, process: Process, model: ShardedModel, optimizers: Optimizers) -> None:
        self.process = process
        self.micro_batches = config.training.micro_batches
        self.model = model
        self.optimizers = optimizers
        self.targets = Targets(config.tasks, process.device)
        self.losses = TaskLosses(config.tasks, process.device, model.weighting)
        self.ahead = ExchangeAhead() if exchanges_ahead(config, process) else None
        """Exchange of the ids of the next micro-batch; None to exchange ids right before their lookup."""
        self.not_finite: list[str] = []
        """Tasks whose gradient was not finite in the last step; known only if gradients are computed per task."""

    def __call__(
        self,
        batches: Sequence[Batch],
        step: int,
        epoch: int,
        measure: bool = False,
        flag: int = 0,
        following: Batch | None = None,
    ) -> tuple[Tensor, StepReport]:
        """Take step number ``step``; return this process's parts of the tasks' losses [T], and the report of the update.

        Args:
            batches: this process's rows, in micro-batches.
            step: number of steps taken so far.
            epoch: number of passes over the data so far.
            measure: True to report the largest moves of coordinates.
            flag: number from this process; the report's flag is the largest one of any process.
            following: this process's first micro-batch of the next step, whose ids are exchanged during this one.
        """
        enter_phase(f"forward and backward of step {step + 1}")
        self.model.ids.begin(step)
        self.losses.weighting.start(epoch)
        self.optimizers.set_learning_rate(step)
        self.optimizers.zero_grad()
        with phase("weights of the rows"):
            pieces = self.pieces(batches, step)
            totals, rows = self.total_weights(pieces)
        parts = self.differentiate(pieces, totals, rows, step, following)
        enter_phase(f"the update of step {step + 1}")
        with phase("optimizer step"):
            report = self.optimizers.step(measure, flag)
        if not report.skipped:
            self.after_update(pieces, parts, totals, step)
        self.model.ids.end(keep=not report.skipped)
        return parts, report

    def differentiate(
        self, pieces: Sequence[MicroBatch], totals: Tensor, rows: Tensor, step: int, following: Batch | None = None
    ) -> Tensor:
        """Compute the gradients of all parameters; return this process's parts of the tasks' losses [T].

        Args:
            pieces: this process's rows.
            totals: sums of the weights of the global batch's rows, for each task [T].
            rows: sum of the weights of its rows, independent of tasks.
            step: number of steps taken so far.
            following: first micro-batch of the next step, for the exchange of its ids.
        """
        parts = torch.zeros_like(totals)
        for number, piece in enumerate(pieces):
            logits = self.logits(self.model.module, pieces, step, number, following)
            with phase("losses"):
                terms, part = self.losses(logits, piece.labels, piece.weights, totals, len(pieces))
                penalty = self.penalty(logits, piece, rows)
            with phase("backward"):
                loss = terms.sum() if penalty is None else terms.sum() + penalty
                loss.backward()  # type: ignore[no-untyped-call]
            parts += part
        return parts

    def logits(
        self, module: nn.Module, pieces: Sequence[MicroBatch], step: int, number: int, following: Batch | None
    ) -> Tensor:
        """Logits [B, T] of a step's micro-batch ``number`` by ``module``; meanwhile the ids of the next one are exchanged."""
        if self.ahead is not None:
            self.ahead.deliver()
            last = number + 1 == len(pieces)
            coming = following if last else pieces[number + 1].batch
            if coming is not None:
                self.set_clock(step + last, 0 if last else number + 1)
                self.ahead.start(self.model.lookup_inputs(coming))
        self.set_clock(step, number)
        with phase("forward"):
            logits: Tensor = module(pieces[number].batch)
        if self.ahead is not None:
            self.ahead.send()
        return logits

    def settle(self) -> None:
        """Let an exchange that is under way come to its end; training stops, or something else comes between."""
        if self.ahead is not None:
            self.ahead.drop()

    def pieces(self, batches: Sequence[Batch], step: int) -> list[MicroBatch]:
        """Labels and weights for each of ``batches``, after sampling rows for the tasks."""
        result = []
        for number, batch in enumerate(batches):
            self.set_clock(step, number)
            result.append(MicroBatch(batch, *self.targets.sampled(batch.labels, batch.weights, self.model.random)))
        return result

    def total_weights(self, pieces: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
        """Sums of the weights of the global batch's rows: for each task [T], and independent of tasks []."""
        own = [torch.cat([piece.weights.sum(dim=0), piece.row_weights.sum().unsqueeze(0)]) for piece in pieces]
        sums = torch.stack(own).sum(dim=0)  # [T + 1]
        dist.all_reduce(sums)
        return sums[:-1], sums[-1]

    def penalty(self, logits: Tensor, piece: MicroBatch, rows: Tensor) -> Tensor | None:
        """Penalty of the model, averaged over the global batch; multiplied by the number of processes, by which DDP divides."""
        penalty = self.model.penalty(logits)  # [B]
        if penalty is None:
            return None
        return (penalty * piece.row_weights).sum() / rows.clamp(min=1e-30) * self.process.world_size

    def after_update(self, pieces: Sequence[MicroBatch], parts: Tensor, totals: Tensor, step: int) -> None:
        """Update the task weights by the losses of an applied step; arguments as in :meth:`differentiate`."""
        self.losses.weighting.observe(parts, totals)

    def rehearse(self, batch: Batch) -> None:
        """Differentiate a batch of weight 0, so that sums over processes do not depend on the first step of a run.

        After two backward passes DDP reorders the parameters. With more than two processes that changes the order of
        summation, and the first steps after a resume would differ from the same steps of an uninterrupted run.
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
        """Set the random draws to a step's micro-batch ``number``."""
        self.model.random.step = step * self.micro_batches + number

    def figures(self) -> dict[str, float]:
        """Scalars of the last step for the log, besides its losses."""
        return {**self.model.ids.figures}
