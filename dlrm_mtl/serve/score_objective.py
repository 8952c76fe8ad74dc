"""Goals of a score: metrics of several tasks' labels, in the order that one score makes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.metrics.binary import auc
from dlrm_mtl.metrics.grouped import GroupedOrder
from dlrm_mtl.metrics.ranking import mrr, ndcg

NAMES = ("auc", "gauc", "ndcg@K", "mrr")
"""Metrics of a goal; all but ``auc`` are means over groups."""


@dataclass(frozen=True)
class Goal:
    """A metric of a task: how much it counts, or how large it must be."""

    task: str
    metric: str
    number: float
    """Weight in the objective, or least value of a condition."""

    @property
    def name(self) -> str:
        """``TASK/METRIC``."""
        return f"{self.task}/{self.metric}"

    @property
    def grouped(self) -> bool:
        """True if the metric is a mean over groups."""
        return self.metric != "auc"


def goals_of(options: Sequence[str], option: str, tasks: Sequence[str]) -> list[Goal]:
    """Goals from options such as ``is_click/gauc=2`` or, with the number 1, ``is_click/ndcg@10``.

    Raises:
        UserError: an option has another form, or names a task or a metric that does not exist.
    """
    found = []
    for text in options:
        name, _, number = text.partition("=")
        task, _, metric = name.rpartition("/")
        if task not in tasks:
            raise UserError(f"{option} {text}: there is no binary task {task!r}; {suggest(task, tasks)}.")
        if metric not in ("auc", "gauc", "mrr") and not re.fullmatch(r"ndcg@[1-9]\d{0,5}", metric):
            raise UserError(f"{option} {text}: {metric!r} is not a metric; choose {', '.join(NAMES)}.")
        try:
            value = float(number) if number else 1.0
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise UserError(f"{option} {text}: {number!r} is not a number; write TASK/METRIC=NUMBER.")
        found.append(Goal(task, metric, value))
    return found


@dataclass(frozen=True)
class TaskLabels:
    """Labels of a task in N rows."""

    positive: NDArray[np.bool_]
    """[N], True for positives."""
    counted: NDArray[np.bool_]
    """[N], True for rows in which the task is defined."""


class Judge:
    """Metrics of scores.

    Args:
        labels: labels by task.
        groups: [N] int64, group of each row; None if no metric is a mean over groups.
        goals: metrics to compute.

    Raises:
        UserError: a metric is not defined in these rows.
    """

    def __init__(
        self, labels: Mapping[str, TaskLabels], groups: NDArray[np.int64] | None, goals: Sequence[Goal]
    ) -> None:
        self._labels, self._groups = labels, groups
        self._goals = {goal.name: goal for goal in goals}
        rows = len(next(iter(labels.values())).positive)
        for name, value in self(np.zeros(rows, np.float32)).items():
            if not np.isfinite(value):
                raise UserError(
                    f"{name} is not defined in these rows, which need positives and negatives of the task, in one group for a "
                    "metric by group; use more rows, or another metric."
                )

    def __call__(self, scores: NDArray[np.float32]) -> dict[str, float]:
        """Metrics by name of ``scores`` [N]."""
        order = None if self._groups is None else GroupedOrder(self._groups, scores)
        return {name: self._value(goal, scores, order) for name, goal in self._goals.items()}

    def _value(self, goal: Goal, scores: NDArray[np.float32], order: GroupedOrder | None) -> float:
        labels = self._labels[goal.task]
        if not goal.grouped:
            kept = labels.counted
            positive = labels.positive[kept].astype(np.float64)
            return auc(scores[kept].astype(np.float64), positive, np.ones_like(positive))
        assert order is not None
        if goal.metric == "gauc":
            return order.gauc(labels.positive, labels.counted)
        found = order.positions(labels.positive, labels.counted)
        return mrr(found) if goal.metric == "mrr" else ndcg(found, int(goal.metric.partition("@")[2]))
