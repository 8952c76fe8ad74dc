"""TensorBoard's files of a run: its scalars, its configuration as text, and its hyperparameters."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrm_mtl.config.load import dump_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.metrics import METRICS
from dlrm_mtl.run.settings import MAY_CHANGE, flat
from dlrm_mtl.training.events import CheckpointStart, End, Evaluation, Listener, Log, RoundEnd, RoundStart, Start

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

LENGTH = ("training.epochs", "training.max_steps")
"""Hyperparameters although a resumed run may change them."""


class TensorBoard(Listener):
    """Writes a run for TensorBoard.

    A file is opened when training begins: a finished run that is resumed writes none.

    Args:
        folder: folder of its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._start: Start | None = None
        self._step = 0
        self._writer: SummaryWriter | None = None
        self._broken = False

    def on_start(self, event: Start) -> None:
        """Store the configuration of the run."""
        self._start, self._step = event, event.step

    def on_round_start(self, event: RoundStart) -> None:
        """Open the file."""
        self._attempt(self._open)

    def _open(self) -> None:
        """Open a file once, with the configuration; entries after the checkpoint that a run resumes from are hidden."""
        if self._writer is not None:
            return
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        _quieten()
        assert self._start is not None
        config, step = self._start.config, self._start.step
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        lines = dump_config(config).splitlines()
        self._writer.add_text("configuration", "\n".join(f"    {line}" for line in lines), step)
        # SummaryWriter.add_hparams would write a separate run.
        experiment, session, self._session_end = hparams(hyperparameters(config), dict.fromkeys(headline_tags(config)))
        self._add(experiment)
        self._add(session)

    def on_log(self, event: Log) -> None:
        """Write the values below "train/"."""
        self._attempt(lambda: self._write("train", event.step, event.values))

    def on_evaluation(self, event: Evaluation) -> None:
        """Write metrics below the name of the split; test metrics, of whichever checkpoint, at the last step."""
        if event.split == "test":
            self._attempt(lambda: self._end_session(event.metrics))
        elif event.split == "validation":
            self._attempt(lambda: self._write(event.split, event.step, event.metrics))

    def on_checkpoint_start(self, event: CheckpointStart) -> None:
        """Flush the file."""
        self._attempt(lambda: self.writer.flush())

    def on_round_end(self, event: RoundEnd) -> None:
        """Store the last step."""
        self._step = event.step

    def on_end(self, event: End) -> None:
        """Close the file."""
        if self._writer is not None:
            self._attempt(self._writer.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do ``action``; after an error of the disk give up, with a warning."""
        if self._broken:
            return
        try:
            action()
        except OSError as error:
            self._broken = True
            logger.warning(
                "WARNING: %s: cannot be written (%s); TensorBoard gets no more entries until the run is resumed",
                self.folder,
                error.strerror,
            )

    @property
    def writer(self) -> SummaryWriter:
        """The writer of the open file."""
        assert self._writer is not None
        return self._writer

    def _add(self, summary: Any) -> None:
        file_writer: Any = self.writer.file_writer
        file_writer.add_summary(summary)

    def _end_session(self, metrics: dict[str, float]) -> None:
        self._open()  # a run that owes only its results trains no round
        self._write("test", self._step, metrics)
        self._add(self._session_end)
        self.writer.flush()

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(f"{kind}/{key}", value, step)


def _quieten() -> None:
    """Let TensorBoard's thread end without a traceback after an error of the disk, which the next call raises anyway."""
    before = threading.excepthook
    if before.__module__ == __name__:
        return

    def report(arguments: threading.ExceptHookArgs) -> None:
        if not (
            isinstance(arguments.exc_value, OSError) and type(arguments.thread).__module__.startswith("tensorboard.")
        ):
            before(arguments)

    threading.excepthook = report


def hyperparameters(config: RunConfig) -> dict[str, float | str]:
    """The settings that determine the result, by the paths of their keys: numbers, and all others as text."""
    found = {}
    for key, value in flat(config.model_dump(mode="json")).items():
        changeable = any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)
        if key in LENGTH or not changeable:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            found[key] = value if number or isinstance(value, str) else json.dumps(value)
    return found


def headline_tags(config: RunConfig) -> list[str]:
    """Tags of the scalars shown beside the hyperparameters: the first metric of every task, and its mean."""
    first = [(task.name, next(iter(METRICS[task.kind]))) for task in config.tasks]
    names = [*(f"mean/{metric}" for _, metric in first), *(f"{task}/{metric}" for task, metric in first)]
    return [f"{split}/{name}" for split in ("test", "validation") for name in dict.fromkeys(names)]
