"""The training loop. Read this file to see what a run does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch.distributed as dist
from torch import Tensor

from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.job_watch import enter_phase
from dlrm_mtl.core.phases import PhaseClock, phase
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.embeddings.two_phase import StepReport
from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.training import events
from dlrm_mtl.training.averages import Window
from dlrm_mtl.training.build import build_step
from dlrm_mtl.training.divergence import DivergedError, DivergenceWatch
from dlrm_mtl.training.evaluation import Evaluator
from dlrm_mtl.training.interruption import Interrupted, Interruption
from dlrm_mtl.training.publisher import Publisher
from dlrm_mtl.training.saver import Saver
from dlrm_mtl.training.sharded_model import ShardedModel
from dlrm_mtl.training.tensors import RunTensors


@dataclass
class RunParts:
    """The objects of a :class:`Trainer` on one process."""

    config: RunConfig
    process: Process
    model: ShardedModel
    optimizers: Optimizers
    train_data: BatchLoader
    checkpoints: Checkpoints
    progress: RunState
    """State of the run; the trainer updates it."""
    validation: Evaluator | None = None
    listeners: events.Listeners = field(default_factory=events.Listeners)
    first_step: int = 0
    """Growing data: the step at which the round of ``train_data`` started."""
    first_epoch: int = 0
    """Growing data: number of earlier rounds, which takes the place of the epoch in the order of rows."""
    growing: bool = False
    """True if more data may arrive: then nothing stops early."""
    publisher: Publisher | None = None
    """Publisher of versions for servers."""


class Trainer:
    """Training from the state in ``progress`` to the end of the run, or to a signal.

    Every process runs the same loop on its own lanes, and sends events to its listeners. A round of growing data is trained
    like a run that starts at the end of the last round.

    Args:
        parts: see :class:`RunParts`; each is also an attribute of the trainer.
    """

    def __init__(self, parts: RunParts) -> None:
        config = parts.config
        self.config = config
        self.process = parts.process
        self.model = parts.model
        self.optimizers = parts.optimizers
        self.train_data = parts.train_data
        self.validation = parts.validation
        self.checkpoints = parts.checkpoints
        self.progress = parts.progress
        self.growing = parts.growing
        self.publisher = parts.publisher
        self.first_step, self.first_epoch = parts.first_step, parts.first_epoch
        self.tell = parts.listeners.tell
        self.step = build_step(config, parts.process, parts.model, parts.optimizers)
        self.names = [task.name for task in config.tasks]
        self.total_steps = self.first_step + config.training.total_steps(self.train_data.steps_per_epoch)
        self.steps_per_epoch = config.training.steps_per_epoch(self.train_data.steps_per_epoch)
        self.evaluate_every = config.training.evaluate_every or self.steps_per_epoch
        self.checkpoint_every = config.training.checkpoint_every or self.evaluate_every
        self.interruption = Interruption()
        self.clock = PhaseClock(parts.process.device) if config.training.phase_times else None
        self.window = Window(self.names, parts.process.device, self.clock)
        tensors = RunTensors(parts.model, parts.optimizers)
        self.saver = Saver(parts.checkpoints, tensors, parts.progress, config.training, self.tell)
        self.watch = DivergenceWatch(self.names, config.training.stop_on_divergence)

    @property
    def finished(self) -> bool:
        """True if the last step is done, or early stopping applies."""
        patience = self.config.training.early_stopping.patience
        impatient = 0 < patience <= self.progress.evaluations_without_improvement
        return (impatient and not self.growing) or self.progress.step >= self.total_steps

    def train(self) -> None:
        """Take the remaining steps.

        Raises:
            Interrupted: a signal arrived; the checkpoint ``latest`` holds the state.
            UserError: a row of the data cannot be used.
            DivergedError: too many gradients are not finite, or the loss diverges with ``training.stop_on_divergence``.
        """
        with self.interruption, self.clock or nullcontext():
            try:
                self.tell(events.RoundStart(self.progress.step, self.total_steps))
                self.model.module.train()
                self.step.rehearse(self.train_data.empty_batch().to(self.process.device))
                while not self.finished:
                    epochs, start_step = divmod(self.progress.step - self.first_step, self.steps_per_epoch)
                    self._train_epoch(self.first_epoch + epochs, start_step)
            finally:
                self.checkpoints.abandon()  # after an error; else none is being written
                if self.publisher is not None:
                    self.publisher.abandon()
                self.tell(events.RoundEnd(self.progress.step))

    def _train_epoch(self, epoch: int, start_step: int) -> None:
        self.model.module.train()
        self.window.restart(self.train_data.wait_seconds)
        enter_phase(f"reading step {self.progress.step + 1}")
        for batches, following in self.steps_of(epoch, start_step):
            step = self.progress.step + 1
            last = step == self.total_steps
            logged = step % self.config.training.log_every == 0 or last
            due = int(self.publisher is not None and self.publisher.due(step))
            flag = 2 * self.interruption.signal + due
            parts, report = self.step(
                batches, self.progress.step, epoch, measure=logged, flag=flag, following=following
            )
            # All processes stop after the same step, whichever got the signal, and then publish nothing.
            stop, due = divmod(report.flag, 2)
            self.progress.step, self.progress.steps_applied = step, self.optimizers.sparse.steps
            if stop:
                self.step.settle()
            self.tell(events.Step(step, epoch, parts, report))
            self.window.add(self.check(parts, report), self.config.data.batch_size, self.step.figures())
            if logged:
                self.log(epoch, self.window.close(self.train_data.wait_seconds), report)
            if step % self.evaluate_every == 0 or last:
                self.saver.finish(signal=bool(stop))
                self.validate()
                self.saver.save(last=self.finished, signal=bool(stop))
                self.window.restart(self.train_data.wait_seconds)
            elif step % self.checkpoint_every == 0 or stop:
                self.saver.save(signal=bool(stop))
            else:
                self.saver.poll()
            if self.publisher is not None:
                self.publish(self.publisher, bool(due), bool(stop))
            if stop:
                raise self.interrupted(stop)
            if self.finished:
                self.step.settle()
                return
            enter_phase(f"reading step {step + 1}")

    def steps_of(self, epoch: int, start_step: int) -> Iterator[tuple[list[Batch], Batch | None]]:
        """Rows of each step of an epoch, with the first micro-batch of the next one if its ids are exchanged ahead."""
        steps = self._read(epoch, start_step)
        if self.step.ahead is None:
            yield from ((batches, None) for batches in steps)
            return
        batches = next(steps, None)
        while batches is not None:
            coming = next(steps, None)
            yield batches, coming[0] if coming else None
            batches = coming

    def _read(self, epoch: int, start_step: int) -> Iterator[list[Batch]]:
        """Rows of each step of an epoch, in micro-batches, on this process's device."""
        pieces = self.config.training.micro_batches
        batches = self.train_data.epoch(epoch, start_step * pieces)
        for _ in range(start_step, self.steps_per_epoch):
            with phase("waiting for data"):
                found = [batch.to(self.process.device, non_blocking=True) for batch in islice(batches, pieces)]
            yield found

    def check(self, parts: Tensor, report: StepReport) -> Tensor | None:
        """Count and report a skipped step, and fail after too many in a row; return ``parts`` if it was not skipped."""
        self.progress.clipped_steps += report.clipped
        if not report.skipped:
            self.progress.skipped_in_a_row = 0
            return parts
        self.progress.skipped_steps += 1
        self.progress.skipped_in_a_row += 1
        losses = parts.clone()
        dist.all_reduce(losses)
        tasks = [name for name, loss in zip(self.names, losses.tolist(), strict=True) if not math.isfinite(loss)]
        where = f"{', '.join(report.non_finite)}; tasks with such a loss: {', '.join(tasks) or 'none'}"
        if self.step.not_finite:
            where += f"; tasks with such a gradient: {', '.join(self.step.not_finite)}"
        self.tell(events.Skip(self.progress.step, self.progress.skipped_in_a_row, where))
        limit = self.config.training.max_skipped_steps
        if self.progress.skipped_in_a_row >= limit:
            raise DivergedError(
                f"step {self.progress.step}: {limit} steps in a row met a gradient that is not finite, in {where}; lower "
                "optimizer.dense.learning_rate or optimizer.sparse.learning_rate, or check the data."
            )
        return None

    def log(self, epoch: int, values: dict[str, float], report: StepReport) -> None:
        """Send a log entry of the steps since the last one."""
        self.progress.seconds += values["seconds"]
        counts = {"skipped_steps": self.progress.skipped_steps, "clipped_steps": self.progress.clipped_steps}
        more = {"epoch": epoch + 1, "rate_factor": self.optimizers.factor, **counts, **report.scalars()}
        self.tell(events.Log(self.progress.step, epoch, {**values, **more}))
        self.watch.log(self.progress.step, values)

    def validate(self) -> None:
        """Evaluate on the validation split and record whether the result is the best so far."""
        validation = self.validation
        if validation is None:
            return

        def on_progress(done: int) -> None:
            enter_phase(f"validation after step {self.progress.step}", lasting=True)
            self.tell(events.Progress("validate", done, validation.loader.steps_per_epoch))

        on_progress(0)
        found = validation(self.model, on_progress)
        watched = self.config.training.early_stopping.metric
        value = found.metrics[watched]
        better = lower_is_better(watched)
        best = self.progress.best_value
        self.watch.evaluation(self.progress.step, watched, value)
        if best is None or math.isnan(best):
            improved = not math.isnan(value)
        else:
            improved = value < best if better else value > best
        if improved:
            self.progress.best_value, self.progress.best_step = value, self.progress.step
            self.progress.evaluations_without_improvement = 0
        else:
            self.progress.evaluations_without_improvement += 1
        is_best = self.progress.best_step == self.progress.step
        rows = validation.loader.rows
        self.tell(events.Evaluation(self.progress.step, "validation", rows, found.metrics, is_best, found.scores))

    def publish(self, publisher: Publisher, due: bool, stop: bool) -> None:
        """Publish a version if one is due, and after the last step; go on with one that is being written."""
        if (due and not stop) or self.finished:
            publisher.publish()
        if self.finished or stop:
            publisher.finish()
        else:
            publisher.poll()

    def interrupted(self, signal: int) -> Interrupted:
        """Exception that ends the run after a signal, with what became of the checkpoint."""
        stopped = f"stopped after step {self.progress.step} of {self.total_steps}"
        error = self.saver.error
        if error is None:
            return Interrupted(signal, f"{stopped}; the checkpoint is saved")
        reason = str(error).rstrip(".")
        return Interrupted(signal, f"{stopped}, which is NOT saved: {reason}", resumable=error.newest is not None)


def lower_is_better(metric: str) -> bool:
    """Return True if a smaller value of ``TASK/METRIC`` is better."""
    return ALL_METRICS[metric.rpartition("/")[2]].lower_is_better
