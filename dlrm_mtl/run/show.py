"""Console output of a run: its plan and size, a progress bar, evaluations, and results."""

from __future__ import annotations

import torch

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.console import Bar, console, headlines, metrics_table, plan_summary, plan_table
from dlrm_mtl.embeddings.torchrec.plan import describe_plan
from dlrm_mtl.run.show_slices import slices_table
from dlrm_mtl.tasks.check import remarks
from dlrm_mtl.training.events import End, Evaluation, Listener, Log, Progress, RoundEnd, RoundStart, Skip, Start


class ShowProgress(Listener):
    """Listener that shows a run on the console, as the command line does.

    Args:
        config: configuration of a run that is not trained; training passes it in its start event.
    """

    def __init__(self, config: RunConfig | None = None) -> None:
        self._config = config
        self._bar: Bar | None = None
        self._inner: Bar | None = None

    @property
    def config(self) -> RunConfig:
        """Configuration of the run."""
        assert self._config is not None
        return self._config

    def on_start(self, event: Start) -> None:
        """Show the run's name, size and plan."""
        self._config = event.config
        data, model, process = self.config.data, event.model, event.process
        sparse, dense = model.parameter_count()
        amount, steps = "growing data", "steps"
        if event.data_rows is not None:
            amount = f"{event.data_rows:,} rows"
            steps = f"{self.config.training.epochs} epoch(s), {event.total_steps:,} steps"
        drawn = f" and up to {data.negatives.each} drawn for each," if data.negatives else ""
        out = console()
        plan = describe_plan(model.plan, model.tables, self.config.optimizer.sparse.states, process.world_size)
        out.print(plan_table(plan))
        out.print(plan_summary(plan))
        out.print(
            f"{self.config.name}: {amount} of {event.data_name}, {steps} of {data.batch_size:,} rows{drawn} on "
            f"{process.world_size} process(es), {process.device.type}, {torch.get_num_threads()} thread(s) each\n"
            f"{sparse:,} parameters in {len(model.tables)} tables, {dense:,} in the dense part; output in {event.folder}"
        )
        for remark in remarks(self.config.tasks):
            out.print(f"note: {remark}")
        if event.step:
            out.print(f"resuming after step {event.step}")

    def on_round_start(self, event: RoundStart) -> None:
        """Show a bar."""
        self._bar = Bar("train", event.total_steps, shown=True, done=event.step)
        self._bar.__enter__()

    def on_log(self, event: Log) -> None:
        """Move the bar, and show the losses and the speed."""
        assert self._bar is not None
        losses = " ".join(f"{task.name} {event.values[f'loss/{task.name}']:.3f}" for task in self.config.tasks)
        wait = event.values["data_wait_share"]
        waiting = f"  {wait:.0%} waiting for data" if wait > 0.1 else ""
        self._bar.update(event.step, f"{event.values['rows_per_second']:,.0f} rows/s  {losses}{waiting}")

    def on_skip(self, event: Skip) -> None:
        """Show why a step was skipped."""
        assert self._bar is not None
        self._bar.say(f"step {event.step} skipped: a gradient is not finite in {event.reason}")

    def on_progress(self, event: Progress) -> None:
        """Show a separate bar."""
        if self._inner is None:
            self._inner = Bar(event.work, event.total, shown=True, brief=event.brief)
            self._inner.__enter__()
        self._inner.update(event.done)
        if event.done == event.total:
            self._close_inner()

    def on_evaluation(self, event: Evaluation) -> None:
        """Show the metrics: one line in training, a table at the end."""
        if self._bar is None:
            title = f"{self.config.name}: {event.split} split, {event.rows:,} rows"
            console().print(metrics_table(title, event.metrics, [task.name for task in self.config.tasks]))
            if event.slicings:
                console().print(slices_table(event.slicings, self.config.tasks))
            return
        watched = self.config.training.early_stopping.metric
        mark = "  (best so far)" if event.is_best else ""
        self._bar.say(
            f"step {event.step}: validation {watched} {event.metrics[watched]:.4f}{mark}; "
            f"{headlines(self.config.tasks, event.metrics)}"
        )

    def on_round_end(self, event: RoundEnd) -> None:
        """Remove the bar."""
        self._close_inner()
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def on_end(self, event: End) -> None:
        """Remove remaining bars."""
        self._close_inner()

    def _close_inner(self) -> None:
        if self._inner is not None:
            self._inner.__exit__(None, None, None)
            self._inner = None
