"""A short table of metrics by slice for the console."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from dlrm_mtl.evaluation.results import MetricSlice, Slicing
from dlrm_mtl.metrics import METRICS, Metric
from dlrm_mtl.tasks.config import TaskConfig

ROWS = 12
"""Largest number of rows of the table."""


def slices_table(slicings: Sequence[Slicing], tasks: Sequence[TaskConfig]) -> Table:
    """For every column and task, the slices with the worst and the best value of the task's first metric."""
    table = Table(title="By slice: the worst and the best one", title_justify="left")
    for heading in ("column", "slices", "task", "metric", "worst", "", "best", ""):
        table.add_column(heading, justify="right" if heading in ("slices", "") else "left")
    pairs = [(slicing, task) for slicing in slicings for task in tasks]
    for slicing, task in pairs[:ROWS]:
        name, metric = next((name, one) for name, one in METRICS[task.kind].items() if not one.of_positions)
        defined = [each for each in slicing.slices if not math.isnan(each.tasks[task.name].metrics[name])]
        defined.sort(key=lambda each: each.tasks[task.name].metrics[name], reverse=metric.lower_is_better)
        ends = (
            [_cells(each, task.name, name, metric) for each in (defined[0], defined[-1])]
            if defined
            else [["-", "-"]] * 2
        )
        table.add_row(slicing.column, str(len(slicing.slices)), task.name, metric.heading, *ends[0], *ends[1])
    if len(pairs) > ROWS:
        table.caption = f"and {len(pairs) - ROWS} more"
    return table


def _cells(part: MetricSlice, task: str, name: str, metric: Metric) -> list[str]:
    """Name of a slice with its support, and the metric."""
    found = part.tasks[task]
    support = f"{found.rows:,} rows" + ("" if found.positives is None else f", {found.positives:,} positive")
    return [f"{part.label} ({support})", metric.form.format(found.metrics[name])]
