"""A watch for silent failures: exploding losses, tasks without rows, uninformative metrics."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from dlrm_mtl.core.errors import UserError

FACTOR = 10.0
"""Ratio of a loss to its first entry above which it counts as diverging."""
ENTRIES = 3
"""Number of consecutive entries before a warning."""
CHANCE = 0.5
"""AUC of constant predictions."""

logger = logging.getLogger(__name__)


class DivergedError(UserError):
    """A run ended because its loss or its gradients grew without bound."""


class DivergenceWatch:
    """Watch that warns once about each failure. All processes see the same numbers and reach the same decision.

    Args:
        tasks: names of the tasks.
        stop: True to end the run if the loss of a task diverges.
    """

    def __init__(self, tasks: Sequence[str], stop: bool) -> None:
        self.tasks = tasks
        self.stop = stop
        self._first: dict[str, float] = {}
        self._in_a_row: Counter[str] = Counter()
        self._said: set[str] = set()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Check an entry of the log.

        Raises:
            DivergedError: the loss of a task diverges, and the run must stop.
        """
        for task in self.tasks:
            loss = values[f"loss/{task}"]
            if math.isnan(loss):  # all steps were skipped, which is reported separately
                continue
            if loss != 0.0:
                self._first.setdefault(task, loss)
            first = self._first.get(task)
            if self._lasts(f"{task} is empty", loss == 0.0 and first is None):
                self._warn(
                    f"{task} empty",
                    f"the task {task} has had no row in {ENTRIES} log entries: its labels are null, its mask leaves no row, or "
                    "the rows' weights are 0; check the label, only_where and data.weight.",
                )
            if first is not None and self._lasts(f"{task} diverges", loss > FACTOR * first):
                sentence = (
                    f"step {step}: the loss of {task} is {loss:.4g}, {loss / first:,.0f} times its first value, and has been "
                    f"far above it for {ENTRIES} log entries: training diverges; lower optimizer.sparse.learning_rate and "
                    "optimizer.dense.learning_rate, or use clippy_rowwise_adagrad and clippy_adagrad."
                )
                if self.stop:
                    raise DivergedError(sentence)
                self._warn(f"{task} diverges", f"{sentence} training.stop_on_divergence: true ends such a run.")

    def evaluation(self, step: int, watched: str, value: float) -> None:
        """Check the watched metric of an evaluation."""
        if math.isnan(value):
            self._warn(
                "nan",
                f"step {step}: {watched} is undefined on the validation split, as it holds one kind of label only; no "
                "checkpoint is the best by it; watch another metric with training.early_stopping.metric.",
            )
        if self._lasts("chance", watched.endswith("/auc") and value == CHANCE, entries=2):
            self._warn(
                "chance",
                f"step {step}: {watched} stays at {CHANCE}: all predictions are alike; check the features, and lower the "
                "learning rates if losses have risen.",
            )

    def _lasts(self, what: str, now: bool, entries: int = ENTRIES) -> bool:
        self._in_a_row[what] = self._in_a_row[what] + 1 if now else 0
        return self._in_a_row[what] >= entries

    def _warn(self, what: str, sentence: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning(sentence)
