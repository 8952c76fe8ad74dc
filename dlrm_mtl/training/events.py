"""Events of the training loop for listeners: progress bars, logs, experiment trackers, profilers.

A listener is a subclass of :class:`Listener` that overrides the methods of its events::

    class Print(Listener):
        def on_evaluation(self, event: Evaluation) -> None:
            print(event.step, event.split, event.metrics)

    dlrm_mtl.train(config, listeners=[Print()])

The order of calls is: ``on_start``; for each round ``on_round_start``, then ``on_step``, ``on_skip``, ``on_log``,
``on_progress``, ``on_evaluation``, ``on_checkpoint_start``, ``on_checkpoint`` and ``on_checkpoint_failed`` in the order of
events, and ``on_round_end``; ``on_evaluation`` of the test split; ``on_end``. A run has one round; growing data has one for
each group of new files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process
from dlrm_mtl.embeddings.two_phase import StepReport
from dlrm_mtl.evaluation.results import Slicing
from dlrm_mtl.metrics.score_bins import ScoreBins
from dlrm_mtl.training.sharded_model import ShardedModel


@dataclass(frozen=True)
class Start:
    """A run is set up: model, optimizers and folder exist, and no step of this attempt is taken yet."""

    config: RunConfig
    process: Process
    model: ShardedModel
    step: int
    """Number of steps already taken: more than 0 for a resumed run."""
    folder: str
    """The run's folder, path or URI."""
    data_name: str
    """Name of the data set."""
    data_rows: int | None
    """Rows of the training split; None for growing data."""
    total_steps: int | None
    """Steps of the whole run; None for growing data."""


@dataclass(frozen=True)
class RoundStart:
    """Training on a data set, or on a group of new files of a growing one, starts or continues."""

    step: int
    """Number of steps of the run already taken."""
    total_steps: int
    """Steps of the run after which the round ends."""


@dataclass(frozen=True)
class Step:
    """A step was taken. Reading its tensors makes the host wait for the device."""

    step: int
    """Number of steps taken, including this one."""
    epoch: int
    """Number of earlier passes over the data."""
    losses: Tensor
    """This process's parts of the tasks' losses [T]; over all processes they sum to the losses of the global batch."""
    report: StepReport
    """Result of the update, such as whether it was skipped or clipped."""


@dataclass(frozen=True)
class Skip:
    """A step changed nothing, because a gradient was not finite."""

    step: int
    in_a_row: int
    """Number of consecutive skipped steps, including this one; ``training.max_skipped_steps`` of them end the run."""
    reason: str
    """Place of the gradient that was not finite: tables, dense part, tasks."""


@dataclass(frozen=True)
class Log:
    """Averages since the previous entry, every ``training.log_every`` steps."""

    step: int
    epoch: int
    """Number of earlier passes over the data."""
    values: dict[str, float]
    """``loss/TASK``, ``rows_per_second``, ``data_wait_share``, ``skipped_steps`` ...: an entry of metrics.jsonl."""


@dataclass(frozen=True)
class Progress:
    """Progress of work other than training steps, such as an evaluation or a prediction."""

    work: str
    """Name of the work, such as ``validate``."""
    done: int
    """Number of finished units of work; 0 at the start."""
    total: int
    brief: bool = True
    """True if the work needs to be shown only when it takes long."""


@dataclass(frozen=True)
class Evaluation:
    """A split was evaluated."""

    step: int
    split: str
    rows: int
    metrics: dict[str, float]
    """``TASK/METRIC``, and ``mean/METRIC``; nan where undefined."""
    is_best: bool = False
    """True if the watched metric, ``training.early_stopping.metric``, is the best so far."""
    scores: dict[str, ScoreBins] = field(default_factory=dict)
    """Scores in bins, by task."""
    slicings: Sequence[Slicing] = ()
    """Metrics by slice, for each of ``metrics.slices``; empty while training goes on."""


@dataclass(frozen=True)
class CheckpointStart:
    """A checkpoint is about to be written: log entries up to now must be flushed to the disk, and are published with it."""

    step: int


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is complete."""

    step: int
    """Number of steps taken, as in ``checkpoints/step_N`` in the run's folder."""


@dataclass(frozen=True)
class CheckpointFailed:
    """A checkpoint could not be saved; by ``training.on_save_error`` the run goes on or stops."""

    step: int
    """Steps taken before the checkpoint."""
    reason: str
    """Sentence that names the file, the reason and the newest checkpoint."""


@dataclass(frozen=True)
class RoundEnd:
    """Training on the data of a round has ended: after all steps, by early stopping, by a signal or an error."""

    step: int


@dataclass(frozen=True)
class End:
    """The run has ended."""

    step: int
    """Number of steps taken."""
    metrics: dict[str, float] | None = None
    """Metrics of the test split, if there is one and the run was completed."""
    error: BaseException | None = None
    """Reason of a premature end: :class:`~dlrm_mtl.training.interruption.Interrupted` after a signal, or an error."""


class Listener:
    """Base of all listeners to a run; each method does nothing unless it is overridden.

    An exception in a listener ends the run, like an error in the loop. Methods are called while all processes wait, so they
    should be quick. They must not call collective operations unless :attr:`every_process` is true.
    """

    every_process = False
    """True to listen on every process, False for the first one only."""

    def on_start(self, event: Start) -> None:
        """A run is set up."""

    def on_round_start(self, event: RoundStart) -> None:
        """Training starts or continues."""

    def on_step(self, event: Step) -> None:
        """A step was taken."""

    def on_skip(self, event: Skip) -> None:
        """The step changed nothing."""

    def on_log(self, event: Log) -> None:
        """Averages over the last steps are available."""

    def on_progress(self, event: Progress) -> None:
        """Work other than training steps makes progress."""

    def on_evaluation(self, event: Evaluation) -> None:
        """A split was evaluated."""

    def on_checkpoint_start(self, event: CheckpointStart) -> None:
        """A checkpoint is about to be written."""

    def on_checkpoint(self, event: CheckpointSaved) -> None:
        """A checkpoint is complete."""

    def on_checkpoint_failed(self, event: CheckpointFailed) -> None:
        """A checkpoint could not be saved."""

    def on_round_end(self, event: RoundEnd) -> None:
        """Training has ended; also after an error."""

    def on_end(self, event: End) -> None:
        """The run has ended; also after an error."""


Event = (
    Start
    | RoundStart
    | Step
    | Skip
    | Log
    | Progress
    | Evaluation
    | CheckpointStart
    | CheckpointSaved
    | CheckpointFailed
    | RoundEnd
    | End
)

_METHODS: dict[type[Any], str] = {
    Start: "on_start",
    RoundStart: "on_round_start",
    Step: "on_step",
    Skip: "on_skip",
    Log: "on_log",
    Progress: "on_progress",
    Evaluation: "on_evaluation",
    CheckpointStart: "on_checkpoint_start",
    CheckpointSaved: "on_checkpoint",
    CheckpointFailed: "on_checkpoint_failed",
    RoundEnd: "on_round_end",
    End: "on_end",
}


class Listeners:
    """Sender of events to several listeners.

    Args:
        listeners: listeners of a run.
        is_main: True on the first process; other processes only keep listeners of every process.
    """

    def __init__(self, listeners: Iterable[Listener] = (), is_main: bool = True) -> None:
        self.listeners = [listener for listener in listeners if is_main or listener.every_process]

    def tell(self, event: Event) -> None:
        """Call the method of ``event`` on all listeners in turn; at an end in reverse order, even if one raises."""
        name = _METHODS[type(event)]
        with ExitStack() as at_end:
            for listener in self.listeners:
                method = getattr(listener, name)
                if isinstance(event, (RoundEnd, End)):
                    at_end.callback(method, event)
                else:
                    method(event)
