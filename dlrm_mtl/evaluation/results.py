"""Result of an evaluation: metrics of a split, and of its slices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from dlrm_mtl.metrics.score_bins import ScoreBins

PartKind = Literal["value", "range", "none", "other"]
"""``value``: rows with one value; ``range``: numbers between two edges; ``none``: nulls; ``other``: all other values."""


@dataclass(frozen=True)
class SliceTask:
    """One task on the rows of a slice."""

    rows: int
    """Number of rows that count for the task."""
    positives: int | None
    """Number of those with a positive label; None for a task with a real label."""
    metrics: dict[str, float]
    """Metrics by name; nan where undefined."""


@dataclass(frozen=True)
class MetricSlice:
    """Rows of a split with one value, or in one range, of a column."""

    label: str
    """Name of the slice for tables and plots."""
    kind: PartKind
    rows: int
    """Number of rows of the split."""
    tasks: dict[str, SliceTask]
    """By name."""
    values: int = 1
    """Number of distinct values of the column in the slice; for a range, 1."""


@dataclass(frozen=True)
class Slicing:
    """All slices by one column; every row of the split is in one of them."""

    column: str
    """Column as the configuration names it."""
    by: Literal["values", "edges", "quantiles"]
    slices: list[MetricSlice]
    """Values by falling number of rows, or ranges by rising numbers; then ``none``, then ``other``."""

    def as_json(self) -> dict[str, Any]:
        """The content for results.json, with null for nan."""
        return {"column": self.column, "by": self.by, "slices": [_slice_as_json(each) for each in self.slices]}


@dataclass(frozen=True)
class SplitEvaluation:
    """Metrics of a split; the same on every process."""

    metrics: dict[str, float]
    """``TASK/METRIC``, and ``mean/METRIC`` for the mean over the tasks that define it; nan where undefined."""
    scores: dict[str, ScoreBins] = field(default_factory=dict)
    """Scores in bins, by task."""
    slicings: list[Slicing] = field(default_factory=list)


def _slice_as_json(part: MetricSlice) -> dict[str, Any]:
    tasks = {
        name: {
            "rows": task.rows,
            "positives": task.positives,
            "metrics": {key: value if math.isfinite(value) else None for key, value in task.metrics.items()},
        }
        for name, task in part.tasks.items()
    }
    return {"label": part.label, "kind": part.kind, "values": part.values, "rows": part.rows, "tasks": tasks}
