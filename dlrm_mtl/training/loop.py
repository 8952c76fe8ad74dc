"""The training loop. Read this file to know what a run does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch.distributed as dist
from torch import Tensor

from dlrm_mtl.checkpoint.checkpoints import Checkpoints, Progress
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.console import Bar, headlines
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.embeddings.two_phase import StepReport
from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.run.growing import Round
from dlrm_mtl.run.scalars import Journal
from dlrm_mtl.training.averages import Window
from dlrm_mtl.training.build import ShardedModel
from dlrm_mtl.training.evaluation import evaluate
from dlrm_mtl.training.interruption import Interrupted, Interruption
from dlrm_mtl.training.step import TrainingStep


class Trainer:
    """Trains a model from where ``progress`` stands to the end of the run, or to a signal.

    Every process runs the same loop on its own lanes; the first one also shows and writes things. A round of growing data is
    trained like a run that begins where the last round ended.
    """

    def __init__(
        self,
        config: RunConfig,
        process: Process,
        model: ShardedModel,
        optimizers: Optimizers,
        train_data: BatchLoader,
        validation_data: BatchLoader | None,
        checkpoints: Checkpoints,
        journal: Journal | None,
        progress: Progress,
        round: Round | None = None,
    ) -> None:
        self.config = config
        self.process = process
        self.model = model
        self.optimizers = optimizers
        self.train_data = train_data
        self.validation_data = validation_data
        self.checkpoints = checkpoints
        self.journal = journal
        self.progress = progress
        self.step = TrainingStep(config, process, model, optimizers)
        self.names = [task.name for task in config.tasks]
        self.growing = round is not None
        self.first_step, self.first_epoch = (round.first_step, round.number) if round else (0, 0)
        self.total_steps = self.first_step + config.training.total_steps(train_data.steps_per_epoch)
        self.steps_per_epoch = config.training.steps_per_epoch(train_data.steps_per_epoch)
        self.evaluate_every = config.training.evaluate_every or self.steps_per_epoch
        self.checkpoint_every = config.training.checkpoint_every or self.evaluate_every
        self.interruption = Interruption()
        self.window = Window(self.names, process.device)

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or early stopping says so."""
        patience = self.config.training.early_stopping.patience
        impatient = 0 < patience <= self.progress.evaluations_without_improvement
        return (impatient and not self.growing) or self.progress.step >= self.total_steps

    def train(self) -> None:
        """Take the remaining steps.

        Raises:
            Interrupted: a signal came; the checkpoint ``latest`` holds the state.
            UserError: a row of the data cannot be used, or too many gradients are not finite.
        """
        bar = Bar("train", self.total_steps, self.process.is_main, done=self.progress.step)
        with self.interruption, bar:
            self.model.module.train()
            self.step.rehearse(self.train_data.empty_batch().to(self.process.device))
            while not self.finished:
                epochs, start_step = divmod(self.progress.step - self.first_step, self.steps_per_epoch)
                self._train_epoch(self.first_epoch + epochs, start_step, bar)

    def _train_epoch(self, epoch: int, start_step: int, bar: Bar) -> None:
        self.model.module.train()
        self.window.restart(self.train_data.wait_seconds)
        for batches in self.steps_of(epoch, start_step):
            step, stop = self.progress.step + 1, 0
            last = step == self.total_steps
            logged = step % self.config.training.log_every == 0 or last
            parts, report = self.step(batches, self.progress.step, epoch, measure=logged)
            self.progress.step, self.progress.steps_applied = step, self.optimizers.sparse.steps
            self.window.add(self.check(parts, report, bar), self.config.data.batch_size, self.step.figures())
            if logged:
                values, stop = self.window.close(self.train_data.wait_seconds, self.interruption.signal)
                self.log(epoch, values, report, bar)
            if step % self.evaluate_every == 0 or last:
                self.validate(bar)
                self.save()
                self.window.restart(self.train_data.wait_seconds)
            elif step % self.checkpoint_every == 0 or stop:
                self.save()
            if stop:
                raise Interrupted(stop, f"stopped after step {step} of {self.total_steps}; the checkpoint is saved")
            if self.finished:
                return

    def steps_of(self, epoch: int, start_step: int) -> Iterator[list[Batch]]:
        """What each step of an epoch learns from, in micro-batches, on this process's device."""
        pieces = self.config.training.micro_batches
        batches = self.train_data.epoch(epoch, start_step * pieces)
        for _ in range(start_step, self.steps_per_epoch):
            yield [batch.to(self.process.device, non_blocking=True) for batch in islice(batches, pieces)]

    def check(self, parts: Tensor, report: StepReport, bar: Bar) -> Tensor | None:
        """Count and name a step that was skipped, and give up after too many in a row; return ``parts`` if it was not."""
        self.progress.clipped_steps += report.clipped
        if not report.skipped:
            self.progress.skipped_in_a_row = 0
            return parts
        self.progress.skipped_steps += 1
        self.progress.skipped_in_a_row += 1
        dist.all_reduce(parts)
        tasks = [name for name, loss in zip(self.names, parts.tolist(), strict=True) if not math.isfinite(loss)]
        where = f"{', '.join(report.non_finite)}; tasks with such a loss: {', '.join(tasks) or 'none'}"
        if self.step.gradients.not_finite:
            where += f"; tasks with such a gradient: {', '.join(self.step.gradients.not_finite)}"
        if self.process.is_main:
            bar.say(f"step {self.progress.step} skipped: a gradient is not finite in {where}")
        limit = self.config.training.max_skipped_steps
        if self.progress.skipped_in_a_row >= limit:
            raise UserError(
                f"step {self.progress.step}: {limit} steps in a row met a gradient that is not finite, in {where}; lower "
                "optimizer.dense.learning_rate or optimizer.sparse.learning_rate, or check the data."
            )
        return None

    def log(self, epoch: int, values: dict[str, float], report: StepReport, bar: Bar) -> None:
        """Show and write down what happened since the last time."""
        self.progress.seconds += values["seconds"]
        losses = " ".join(f"{name} {values[f'loss/{name}']:.3f}" for name in self.names)
        wait = values["data_wait_share"]
        waiting = f"  {wait:.0%} waiting for data" if wait > 0.1 else ""
        bar.update(self.progress.step, f"{values['rows_per_second']:,.0f} rows/s  {losses}{waiting}")
        if self.journal:
            counts = {"skipped_steps": self.progress.skipped_steps, "clipped_steps": self.progress.clipped_steps}
            more = {"epoch": epoch + 1, "rate_factor": self.optimizers.factor, **counts, **report.scalars()}
            self.journal.write("train", self.progress.step, {**values, **more})

    def validate(self, bar: Bar) -> None:
        """Evaluate on the validation split and note whether it is the best so far."""
        if self.validation_data is None:
            return
        with Bar("validate", self.validation_data.steps_per_epoch, self.process.is_main, brief=True) as inner:
            metrics = evaluate(self.model, self.validation_data, self.config.tasks, self.process.device, inner.update)
        watched = self.config.training.early_stopping.metric
        value = metrics[watched]
        better = lower_is_better(watched)
        best = self.progress.best_value
        if best is None or math.isnan(best) or (value < best if better else value > best):
            self.progress.best_value, self.progress.best_step = value, self.progress.step
            self.progress.evaluations_without_improvement = 0
        else:
            self.progress.evaluations_without_improvement += 1
        if self.journal:
            self.journal.write("validation", self.progress.step, metrics)
            mark = "  (best so far)" if self.progress.best_step == self.progress.step else ""
            bar.say(
                f"step {self.progress.step}: validation {watched} {value:.4f}{mark}; {headlines(self.config.tasks, metrics)}"
            )

    def save(self) -> None:
        """Write a checkpoint."""
        if self.journal:
            self.journal.flush()
        self.checkpoints.save(self.model, self.optimizers, self.progress)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of ``TASK/METRIC`` is the better one."""
    return ALL_METRICS[metric.rpartition("/")[2]].lower_is_better
