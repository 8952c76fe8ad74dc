"""One training step: losses of the global batch, gradients, update."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.embeddings.two_phase import StepReport
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.tasks.losses import TaskLosses
from dlrm_mtl.tasks.targets import Targets
from dlrm_mtl.training.balanced import BalancedBackward
from dlrm_mtl.training.distributed import Process
from dlrm_mtl.training.model import ShardedModel


class TrainingStep:
    """Takes training steps; every process calls it with its part of the same global batch."""

    def __init__(self, config: RunConfig, process: Process, model: ShardedModel, optimizers: Optimizers) -> None:
        self.process = process
        self.model = model
        self.optimizers = optimizers
        self.targets = Targets(config.tasks, process.device)
        self.losses = TaskLosses(config.tasks, process.device, model.weighting)
        balancing = model.balancing
        self.balanced = BalancedBackward(model, balancing, optimizers.sparse) if balancing is not None else None

    def __call__(self, batch: Batch, step: int, epoch: int, measure: bool = False) -> tuple[Tensor, StepReport]:
        """Take step number ``step``; return this process's parts of the tasks' losses [T], and what the update did.

        Args:
            batch: this process's rows.
            step: steps taken so far.
            epoch: passes over the data so far.
            measure: whether the report should also say how far coordinates moved.
        """
        self.model.dropout.step = step
        self.model.ids.begin(step)
        self.losses.weighting.start(epoch)
        self.optimizers.prepare(step)
        labels, weights = self.targets.sampled(batch.labels, batch.weights, self.model.dropout)
        rows = weights.amax(dim=1)  # [B], what a row counts where it does not matter for which task
        sums = torch.cat([weights.sum(dim=0), rows.sum().unsqueeze(0)])  # [T + 1]
        dist.all_reduce(sums)
        totals = sums[:-1]
        with self.balanced.around() if self.balanced else nullcontext():
            with record_function("## forward ##"):
                logits = self.balanced.predict(batch) if self.balanced else self.model.module(batch)
            terms, parts = self.losses(logits, labels, weights, totals)
            penalty = self.model.penalty(logits)
            if penalty is not None:
                penalty = (penalty * rows).sum() / sums[-1].clamp(min=1e-30) * self.process.world_size
            with record_function("## backward ##"):
                if self.balanced:
                    self.balanced.backward(terms, penalty, parts, step)
                else:
                    (terms.sum() if penalty is None else terms.sum() + penalty).backward()
        with record_function("## optimizer step ##"):
            report = self.optimizers.step(measure)
        if not report.skipped:
            self.losses.weighting.observe(parts, totals)
            if self.balanced and self.balanced.needs_losses_after:
                with torch.no_grad():
                    self.balanced.after(self.losses.parts(self.model.module(batch), labels, weights, totals))
        self.model.ids.end(keep=not report.skipped)
        return parts, report

    def figures(self) -> dict[str, float]:
        """What the log should say of the last step besides its losses."""
        return self.model.ids.figures | (self.balanced.figures if self.balanced else {})

    def tasks_not_finite(self) -> list[str]:
        """The tasks whose gradient was not finite in the last step, where tasks' gradients are kept apart."""
        return self.balanced.not_finite if self.balanced else []
