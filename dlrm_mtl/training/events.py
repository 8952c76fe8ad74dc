"""What the training loop tells those who listen: progress bars, logs, trackers of experiments, profilers.

A listener is a subclass of :class:`Listener` that overrides what it wants to hear::

    class Print(Listener):
        def on_evaluation(self, event: Evaluation) -> None:
            print(event.step, event.split, event.metrics)

    dlrm_mtl.train(config, listeners=[Print()])

They are called in this order: ``on_start``; for each round ``on_round_start``, then ``on_step``, ``on_skip``, ``on_log``,
``on_progress``, ``on_evaluation``, ``on_checkpoint_start`` and ``on_checkpoint`` as they come, and ``on_round_end``;
``on_evaluation`` of the test split; ``on_end``. A run has one round; on growing data one for each lot of new files.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process
from dlrm_mtl.embeddings.two_phase import StepReport
from dlrm_mtl.training.sharded_model import ShardedModel


@dataclass(frozen=True)
class Start:
    """A run is set up: model, optimizers and folder are there, and no step of this attempt is taken yet."""

    config: RunConfig
    process: Process
    model: ShardedModel
    step: int
    """Steps that are behind it: more than 0 if it resumes."""
    folder: str
    """The run's folder, path or URI."""
    data_name: str
    """Name of the data set."""
    data_rows: int | None
    """Rows of the training split; None if data are growing."""
    total_steps: int | None
    """Steps of the whole run; None if data are growing."""


@dataclass(frozen=True)
class RoundStart:
    """Training on a data set, or on a lot of new files of a growing one, begins or goes on."""

    step: int
    """Steps of the run that are behind it."""
    total_steps: int
    """Steps of the run after which the round ends."""


@dataclass(frozen=True)
class Step:
    """A step was taken. Reading its tensors makes the host wait for the device."""

    step: int
    """Steps taken so far, this one included."""
    epoch: int
    """Passes over the data before it."""
    losses: Tensor
    """This process's parts of the tasks' losses [T]; over all processes they sum to the losses of the global batch."""
    report: StepReport
    """What the update did: was it skipped, was it clipped."""


@dataclass(frozen=True)
class Skip:
    """A step changed nothing, because a gradient was not finite."""

    step: int
    in_a_row: int
    """Steps that were skipped one after the other, this one included; ``training.max_skipped_steps`` end the run."""
    reason: str
    """Where the gradient was not finite: tables, dense part, tasks."""


@dataclass(frozen=True)
class Log:
    """Averages since the entry before, every ``training.log_every`` steps."""

    step: int
    epoch: int
    """Passes over the data before it."""
    values: dict[str, float]
    """``loss/TASK``, ``rows_per_second``, ``data_wait_share``, ``skipped_steps`` ...: an entry of metrics.jsonl."""


@dataclass(frozen=True)
class Progress:
    """Work besides training steps goes on: an evaluation, a prediction."""

    work: str
    """Such as ``validate``."""
    done: int
    """Units of work that are done; 0 when it begins."""
    total: int
    brief: bool = True
    """Whether nobody needs to see it unless it takes long."""


@dataclass(frozen=True)
class Evaluation:
    """A split was evaluated."""

    step: int
    split: str
    rows: int
    metrics: dict[str, float]
    """``TASK/METRIC``, and ``mean/METRIC``; nan where undefined."""
    is_best: bool = False
    """Whether the watched metric, ``training.early_stopping.metric``, is the best so far."""


@dataclass(frozen=True)
class CheckpointStart:
    """A checkpoint is about to be written: what was logged until now should be on the disk, and is published with it."""

    step: int


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is complete."""

    step: int
    """Steps taken; ``checkpoints/step_N`` in the run's folder has this number."""


@dataclass(frozen=True)
class RoundEnd:
    """Training on the data of a round has ended: all steps are taken, early stopping, a signal or an error."""

    step: int


@dataclass(frozen=True)
class End:
    """The run has ended."""

    step: int
    """Steps taken."""
    metrics: dict[str, float] | None = None
    """Of the test split, if there is one and the run came to its end."""
    error: BaseException | None = None
    """What ended it otherwise: :class:`~dlrm_mtl.training.interruption.Interrupted` after a signal, or an error."""


class Listener:
    """Base of everything that listens to a run; each method does nothing until it is overridden.

    What a listener raises ends the run, as an error in the loop does. Methods are called while all processes wait, so that
    they should be quick, and must not call collective operations unless :attr:`every_process` is true.
    """

    every_process = False
    """Whether it listens on every process; otherwise on the first one only."""

    def on_start(self, event: Start) -> None:
        """A run is set up."""

    def on_round_start(self, event: RoundStart) -> None:
        """Training begins or goes on."""

    def on_step(self, event: Step) -> None:
        """A step was taken."""

    def on_skip(self, event: Skip) -> None:
        """The step changed nothing."""

    def on_log(self, event: Log) -> None:
        """Averages over the last steps are there."""

    def on_progress(self, event: Progress) -> None:
        """Work besides training steps goes on."""

    def on_evaluation(self, event: Evaluation) -> None:
        """A split was evaluated."""

    def on_checkpoint_start(self, event: CheckpointStart) -> None:
        """A checkpoint is about to be written."""

    def on_checkpoint(self, event: CheckpointSaved) -> None:
        """A checkpoint is complete."""

    def on_round_end(self, event: RoundEnd) -> None:
        """Training has ended; also after an error."""

    def on_end(self, event: End) -> None:
        """The run has ended; also after an error."""


Event = (
    Start | RoundStart | Step | Skip | Log | Progress | Evaluation | CheckpointStart | CheckpointSaved | RoundEnd | End
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
    RoundEnd: "on_round_end",
    End: "on_end",
}


class Listeners:
    """Tells events to several listeners.

    Args:
        listeners: those of a run.
        is_main: whether this is the first process; on others only those hear something that listen on every process.
    """

    def __init__(self, listeners: Iterable[Listener] = (), is_main: bool = True) -> None:
        self.listeners = [listener for listener in listeners if is_main or listener.every_process]

    def tell(self, event: Event) -> None:
        """Call the method of ``event`` of every listener in turn; at an end in the opposite order, whatever one raises."""
        name = _METHODS[type(event)]
        with ExitStack() as at_end:
            for listener in self.listeners:
                method = getattr(listener, name)
                if isinstance(event, (RoundEnd, End)):
                    at_end.callback(method, event)
                else:
                    method(event)
