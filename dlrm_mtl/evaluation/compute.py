"""The metrics of a split from the rows that every process has scored.

Shapes: N rows of this process, T tasks, C carried columns.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dlrm_mtl.config.metric_columns import MetricColumns
from dlrm_mtl.data.carried_columns import ColumnEncoder
from dlrm_mtl.evaluation.group_metrics import aucs_of_groups
from dlrm_mtl.evaluation.results import MetricSlice, SliceTask, Slicing, SplitEvaluation
from dlrm_mtl.evaluation.row_metrics import Grouping, TaskRows, metrics_of_rows
from dlrm_mtl.evaluation.slices import SliceNames, by, shared_slices
from dlrm_mtl.metrics import Metric, in_order, task_metrics
from dlrm_mtl.metrics.config import SliceConfig
from dlrm_mtl.metrics.score_bins import score_bins
from dlrm_mtl.tasks.config import TaskConfig

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitRows:
    """Rows of a split on this process."""

    scores: NDArray[np.float32]
    """[N, T], logits or predictions."""
    labels: NDArray[np.float32]
    """[N, T]."""
    weights: NDArray[np.float32]
    """[N, T], 0 where the row does not count for the task; padding counts for none."""
    carried: Ids
    """[C, N]."""


def evaluate_rows(rows: SplitRows, tasks: Sequence[TaskConfig], columns: MetricColumns) -> SplitEvaluation:
    """Compute every metric of every task but those of all items. Every process must call this; all get the same result.

    Memory of a process is proportional to its own rows, whatever the scores, groups and slices. Metrics of a task with a
    prediction that is nan are nan, with a warning.
    """
    counted = np.asarray((rows.weights > 0).any(axis=1))
    slicings = [_Rows.of(each, encoder, codes, counted) for each, encoder, codes in columns.sliced(rows.carried)]
    metrics: dict[str, float] = {}
    slices: list[list[dict[str, SliceTask]]] = [[{} for _ in each.names.labels] for each in slicings]
    not_numbers = _total(np.isnan(rows.scores).astype(np.int64) * (rows.weights > 0))
    for column, task in enumerate(tasks):
        own = rows.weights[:, column] > 0
        task_rows = TaskRows(*(each[own, column] for each in (rows.scores, rows.labels, rows.weights)))
        groupings = [Grouping(np.zeros(len(task_rows.scores), np.int64), 1)]
        groupings += [Grouping(each.slice_of[own], len(each.names.labels)) for each in slicings]
        of_kind = task_metrics(task.kind, columns.groups)
        wanted = {name: metric for name, metric in of_kind.items() if not metric.of_positions}
        support = _support(task, task_rows, groupings)
        if not_numbers[column]:
            _warn(task, int(not_numbers[column]), int(support[0][0, 0]))
            found = [{name: np.full(each.count, math.nan) for name in wanted} for each in groupings]
        else:
            groups = {name: rows.carried[place, own] for name, place in columns.group_places.items()}
            found = _metrics(task_rows, groupings, wanted, groups)
        metrics |= {f"{task.name}/{name}": float(value[0]) for name, value in found[0].items()}
        for number, of_slices in enumerate(slices):
            for place, of_slice in enumerate(of_slices):
                values = {name: float(value[place]) for name, value in found[number + 1].items()}
                total, positive = support[number + 1][place].tolist()
                of_slice[task.name] = SliceTask(total, positive if task.kind != "real" else None, values)
    bins = score_bins(rows.scores, rows.labels, rows.weights, [task.kind for task in tasks], _sum)
    return SplitEvaluation(
        _with_means(metrics, tasks),
        {task.name: own for task, own in zip(tasks, bins, strict=True)},
        [each.slicing(tasks_of) for each, tasks_of in zip(slicings, slices, strict=True)],
    )


def with_metrics(found: SplitEvaluation, more: Mapping[str, float], tasks: Sequence[TaskConfig]) -> SplitEvaluation:
    """Add further metrics, by ``TASK/METRIC``."""
    own = {name: value for name, value in found.metrics.items() if not name.startswith("mean/")}
    return replace(found, metrics=_with_means(own | dict(more), tasks))


def _with_means(metrics: Mapping[str, float], tasks: Sequence[TaskConfig]) -> dict[str, float]:
    """The metrics, task by task and in order, and ``mean/METRIC`` over the tasks that define it; nan if none does."""
    names = in_order([key.partition("/")[2] for key in metrics])
    result = {key: metrics[key] for task in tasks for name in names if (key := f"{task.name}/{name}") in metrics}
    for name in names:
        values = [result[key] for task in tasks if (key := f"{task.name}/{name}") in result]
        defined = [value for value in values if not math.isnan(value)]
        result[f"mean/{name}"] = float(np.mean(defined)) if defined else math.nan
    return result


@dataclass(frozen=True)
class _Rows:
    """Slices by one column, with the slice of every row."""

    column: str
    by: Literal["values", "edges", "quantiles"]
    slice_of: Ids
    """[N]; 0 for padding."""
    names: SliceNames
    counts: Ids
    """Rows of every slice over all processes."""

    @classmethod
    def of(cls, config: SliceConfig, encoder: ColumnEncoder, codes: Ids, counted: NDArray[np.bool_]) -> _Rows:
        slice_of = np.zeros(len(codes), np.int64)
        slice_of[counted], names = shared_slices(config, encoder, codes[counted])
        counts = _sum(np.bincount(slice_of[counted], minlength=len(names.labels)).astype(np.int64))
        return cls(config.column, by(config), slice_of, names, counts)

    def slicing(self, tasks: Sequence[dict[str, SliceTask]]) -> Slicing:
        """Slices with rows, and the metrics of each one's tasks."""
        names = zip(self.names.labels, self.names.kinds, self.counts.tolist(), tasks, self.names.values, strict=True)
        return Slicing(self.column, self.by, [MetricSlice(*each) for each in names if each[2]])


def _metrics(
    rows: TaskRows, groupings: Sequence[Grouping], wanted: Mapping[str, Metric], groups: Mapping[str, Ids]
) -> list[dict[str, Floats]]:
    """Metrics of rows and of groups, by name, for each of the slices of every grouping; in the order of ``wanted``."""
    found = metrics_of_rows(rows, groupings, {name: metric for name, metric in wanted.items() if metric.of_rows})
    of_groups = {name: metric for name, metric in wanted.items() if metric.of_groups}
    for column, group in groups.items():
        own = {name: metric for name, metric in of_groups.items() if name.partition("@")[2] == column}
        for grouping, result in zip(groupings, found, strict=True):
            aucs = aucs_of_groups(rows, group, grouping) if own else []
            result |= {name: np.array([metric.function(each) for each in aucs]) for name, metric in own.items()}
    return [{name: result[name] for name in wanted} for result in found]


def _support(task: TaskConfig, rows: TaskRows, groupings: Sequence[Grouping]) -> list[Ids]:
    """Rows and positives [slices, 2] of every grouping over all processes."""
    positive = rows.labels > 0
    result = []
    for grouping in groupings:
        counts = [
            np.bincount(codes, minlength=grouping.count) for codes in (grouping.slice_of, grouping.slice_of[positive])
        ]
        result.append(_sum(np.stack(counts, axis=1).astype(np.int64)))
    return result


def _warn(task: TaskConfig, wrong: int, rows: int) -> None:
    if dist.get_rank() == 0:
        logger.warning(
            "WARNING: task %s: %s of %s predictions are not numbers (nan), so its metrics are nan",
            task.name,
            f"{wrong:,}",
            f"{rows:,}",
        )


def _total(values: Ids) -> Ids:
    """Sums of the columns [N, T] over all processes, [T]."""
    return _sum(values.sum(axis=0))


def _sum(array: NDArray[Any]) -> NDArray[Any]:
    """Sum over all processes."""
    summed = torch.from_numpy(np.ascontiguousarray(array))
    dist.all_reduce(summed)
    return summed.numpy()
