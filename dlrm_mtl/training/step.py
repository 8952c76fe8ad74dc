"""One training step: losses of the global batch, gradients, update."""

from __future__ import annotations

from collections.abc import Sequence

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
from dlrm_mtl.training.backward import BalancedBackward, PlainBackward
from dlrm_mtl.training.build import ShardedModel

Targeted = tuple[Batch, Tensor, Tensor]
"""A micro-batch with its tasks' labels and weights, [B, T] each."""


class TrainingStep:
    """Takes training steps; every process calls it with its part of the same global batch."""

    def __init__(self, config: RunConfig, process: Process, model: ShardedModel, optimizers: Optimizers) -> None:
        self.process = process
        self.micro_batches = config.training.micro_batches
        self.model = model
        self.optimizers = optimizers
        self.targets = Targets(config.tasks, process.device)
        self.losses = TaskLosses(config.tasks, process.device, model.weighting)
        self.gradients: PlainBackward | BalancedBackward = PlainBackward(model)
        """Of the last step: ``figures`` for the log, and the tasks whose gradient was ``not_finite``, where it can tell."""
        if model.balancing is not None:
            self.gradients = BalancedBackward(model, model.balancing, optimizers.sparse)

    def __call__(
        self, batches: Sequence[Batch], step: int, epoch: int, measure: bool = False
    ) -> tuple[Tensor, StepReport]:
        """Take step number ``step``; return this process's parts of the tasks' losses [T], and what the update did.

        Args:
            batches: this process's rows, in micro-batches.
            step: steps taken so far.
            epoch: passes over the data so far.
            measure: whether the report should also say how far coordinates moved.
        """
        self.model.ids.begin(step)
        self.losses.weighting.start(epoch)
        self.optimizers.prepare(step)
        pieces = []
        for number, batch in enumerate(batches):
            self._draw(step, number)
            pieces.append((batch, *self.targets.sampled(batch.labels, batch.weights, self.model.dropout)))
        parts, totals = self._differentiate(pieces, step)
        with record_function("## optimizer step ##"):
            report = self.optimizers.step(measure)
        if not report.skipped:
            self.losses.weighting.observe(parts, totals)
            if self.gradients.needs_losses_after:
                self.gradients.after(self._losses(pieces, totals, step))
        self.model.ids.end(keep=not report.skipped)
        return parts, report

    def rehearse(self, batch: Batch) -> None:
        """Differentiate a batch that counts for nothing, so that sums over processes do not depend on where a run begins.

        After two backward passes DDP puts the parameters into another order. With more than two processes that is another
        order of summation, in which the first steps after a resume would differ from the same steps of an uninterrupted run.
        """
        if self.process.world_size <= 2 or not isinstance(self.gradients, PlainBackward):
            return
        buffers = {buffer: buffer.clone() for buffer in self.model.module.buffers()}
        for _ in range(2):
            self._differentiate([(batch, *self.targets(batch.labels, batch.weights))], 0)
            self.optimizers.prepare(0)
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)

    def _differentiate(self, pieces: Sequence[Targeted], step: int) -> tuple[Tensor, Tensor]:
        """Compute the gradients; return the parts of the tasks' losses [T], and the rows' total weights [T]."""
        counts = [
            weights.amax(dim=1) for _, _, weights in pieces
        ]  # [B], of rows where it does not matter for which task
        sums = torch.stack(
            [
                torch.cat([weights.sum(dim=0), count.sum().unsqueeze(0)])
                for (_, _, weights), count in zip(pieces, counts, strict=True)
            ]
        ).sum(dim=0)  # [T + 1]
        dist.all_reduce(sums)
        totals, parts = sums[:-1], torch.zeros_like(sums[:-1])
        with self.gradients.around():
            for number, ((batch, labels, weights), count) in enumerate(zip(pieces, counts, strict=True)):
                self._draw(step, number)
                with record_function("## forward ##"):
                    logits = self.gradients.predict(batch)
                terms, part = self.losses(logits, labels, weights, totals, len(pieces))
                penalty = self.model.penalty(logits)
                if penalty is not None:
                    penalty = (penalty * count).sum() / sums[-1].clamp(min=1e-30) * self.process.world_size
                with record_function("## backward ##"):
                    self.gradients.backward(terms, penalty)
                parts += part
            self.gradients.finish(parts, step)
        return parts, totals

    @torch.no_grad()
    def _losses(self, pieces: Sequence[Targeted], totals: Tensor, step: int) -> Tensor:
        """This process's parts of the tasks' losses [T] with the weights as they are now."""
        parts = torch.zeros_like(totals)
        for number, (batch, labels, weights) in enumerate(pieces):
            self._draw(step, number)
            parts += self.losses.parts(self.model.module(batch), labels, weights, totals)
        return parts

    def _draw(self, step: int, number: int) -> None:
        """Let what is drawn for rows be that of a step's micro-batch ``number``."""
        self.model.dropout.step = step * self.micro_batches + number

    def figures(self) -> dict[str, float]:
        """What the log should say of the last step besides its losses."""
        return {**self.model.ids.figures, **self.gradients.figures}
