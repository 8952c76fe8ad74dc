"""Quality of a model with tables in another format, compared with float32 on a split of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import size_text
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.embeddings.row_formats import FormatName
from dlrm_mtl.metrics import METRICS
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.targets import Targets, predictions
from dlrm_mtl.training.sharded_model import ShardedModel

LARGEST_VOCABULARY = 256
"""Number of ids up to which a feature's values make slices."""
SMALLEST_SLICE = 500
"""Number of rows with a label from which a slice is compared; it must have 20 rows of each label, too."""
SHOWN_SLICES = 5
"""Number of the worst slices of a task in a report."""

Floats = NDArray[np.float64]


class QualityLimits(Strict):
    """Largest changes that an export accepts."""

    auc: float = Field(ge=0)
    """Largest absolute change of a task's AUC."""
    loss: float = Field(ge=0)
    """Largest relative increase of a task's normalised entropy, or of its RMSE: 0.0005 is 0.05 %."""


DEFAULT_LIMITS: dict[str, QualityLimits] = {
    "fp16": QualityLimits(auc=0.0002, loss=0.0005),
    "int8": QualityLimits(auc=0.0002, loss=0.0005),
    "int4": QualityLimits(auc=0.001, loss=0.003),
}
"""Default limits by format of the tables."""


class Change(Strict):
    """A metric with tables of float32, and with those of the bundle; null where it is not defined."""

    fp32: float | None
    stored: float | None

    @property
    def difference(self) -> float:
        """The change; 0 where the metric is not defined."""
        return 0.0 if self.fp32 is None or self.stored is None else self.stored - self.fp32

    @property
    def relative(self) -> float:
        """The change divided by the metric with float32; 0 where it is not defined."""
        return self.difference / self.fp32 if self.fp32 else 0.0


class SliceQuality(Strict):
    """A task's metrics on the rows with one id of a feature."""

    feature: str
    id: int
    """Id in the prepared data set; -1 for none."""
    rows: int
    """Number of rows with a label."""
    metrics: dict[str, Change]


class TaskQuality(Strict):
    """Comparison of one task."""

    name: str
    rows: int
    """Number of rows with a label."""
    metrics: dict[str, Change]
    """Metrics of single rows by name, as in :mod:`dlrm_mtl.metrics`."""
    largest_difference: float
    """Largest difference of a prediction."""
    mean_difference: float
    """Mean absolute difference of the predictions."""
    worst_slices: list[SliceQuality]
    """The slices whose loss (normalised entropy or RMSE) grows most, the worst first."""


class QualityReport(Strict):
    """The content of a bundle's ``quality.json``."""

    tables: FormatName
    split: str
    bytes_fp32: int
    """Size in bytes of the tables in float32."""
    bytes_stored: int
    """Size in bytes of the tables in the bundle."""
    limits: QualityLimits
    tasks: list[TaskQuality]

    def lines(self) -> list[str]:
        """The report as text."""
        share = self.bytes_stored / max(self.bytes_fp32, 1)
        sizes = f"{size_text(self.bytes_stored)} instead of {size_text(self.bytes_fp32)} ({share:.3f})"
        lines = [f"{self.tables} tables: {sizes}; quality on the split {self.split}, fp32 -> {self.tables}:"]
        for task in self.tasks:
            lines.append(f"  {task.name}, {task.rows:,} rows: {_changes(task.metrics)}")
            if task.worst_slices:
                worst = task.worst_slices[0]
                lines.append(
                    f"    worst slice {worst.feature} = {worst.id}, {worst.rows:,} rows: {_changes(worst.metrics)}"
                )
        return lines

    def check(self) -> None:
        """Compare with the limits; raises :class:`UserError`, which names the first task beyond one."""
        for task in self.tasks:
            for name, change in task.metrics.items():
                by_loss = name in LOSSES
                found, limit = (
                    (change.relative, self.limits.loss) if by_loss else (abs(change.difference), self.limits.auc)
                )
                if (by_loss or name == "auc") and not found <= limit:
                    option = "--max-loss-change" if by_loss else "--max-auc-change"
                    raise UserError(
                        f"--tables {self.tables}: on {self.split} the task {task.name!r} has {name} {change.stored:.6f} where "
                        f"fp32 has {change.fp32:.6f}, a change of {found:.2g} above the limit {limit:g}; choose another "
                        f"format, or allow more by {option}."
                    )


LOSSES = ("normalized_entropy", "rmse")
"""Metrics that are limited by their relative increase."""
_SHOWN = ("auc", "normalized_entropy", "calibration", "rmse")


def _changes(metrics: Mapping[str, Change]) -> str:
    shown = [f"{name} {_change(name, metrics[name])}" for name in _SHOWN if name in metrics]
    return ", ".join(shown)


def _change(name: str, change: Change) -> str:
    if change.fp32 is None or change.stored is None:
        return "undefined"
    by = f"{change.relative:+.4%}" if name in LOSSES else f"{change.difference:+.6f}"
    return f"{change.fp32:.6f} -> {change.stored:.6f} ({by})"


@dataclass(frozen=True)
class SplitScores:
    """What a model says about a split: N rows, T tasks."""

    logits: NDArray[np.float32]
    """[N, T]."""
    predictions: NDArray[np.float32]
    """[N, T]."""
    labels: NDArray[np.float32]
    """[N, T]."""
    weights: NDArray[np.float32]
    """[N, T]; 0 where the row does not count for the task."""
    ids: dict[str, NDArray[np.int64]]
    """[N] the id of each row in the features that make slices; -1 for none."""


@torch.no_grad()
def score_split(
    model: ShardedModel, loader: BatchLoader, tasks: Sequence[TaskConfig], features: Sequence[str]
) -> SplitScores:
    """Scores of all rows of a split, by the trained model as in `evaluate`.

    Args:
        model: the model, of one process.
        loader: loader of the split.
        tasks: tasks of the model.
        features: features whose ids are kept, as far as no row has several.
    """
    model.module.eval()
    targets = Targets(tasks)
    parts: list[list[torch.Tensor]] = [[], [], [], []]
    ids: dict[str, list[torch.Tensor]] = {name: [] for name in features}
    for batch in loader.epoch(0):
        logits = model.module(batch.to(model.device)).cpu()
        for kept, part in zip(
            parts, (logits, predictions(logits, tasks), *targets(batch.labels, batch.weights)), strict=True
        ):
            kept.append(part)
        for name in list(ids):
            feature = batch.sparse[name]
            lengths = feature.lengths()
            if int(lengths.max()) > 1:
                del ids[name]
                continue
            one = torch.full((len(lengths),), -1, dtype=torch.int64)
            one[lengths > 0] = feature.values()
            ids[name].append(one)
    values = [torch.cat(part).numpy() if part else np.empty((0, len(tasks)), np.float32) for part in parts]
    return SplitScores(
        logits=values[0],
        predictions=values[1],
        labels=values[2],
        weights=values[3],
        ids={name: torch.cat(part).numpy() for name, part in ids.items() if part},
    )


def compare_quality(before: SplitScores, after: SplitScores, tasks: Sequence[TaskConfig]) -> list[TaskQuality]:
    """Compare the scores of the same rows with tables of float32 (``before``) and of another format (``after``)."""
    return [_task_quality(before, after, task, column) for column, task in enumerate(tasks)]


def _task_quality(before: SplitScores, after: SplitScores, task: TaskConfig, column: int) -> TaskQuality:
    counted = before.weights[:, column] > 0
    old, new, labels, weights = (
        values[counted, column].astype(np.float64)
        for values in (before.logits, after.logits, before.labels, before.weights)
    )
    gaps = np.abs(before.predictions[counted, column] - after.predictions[counted, column])
    slices = []
    for feature, ids in before.ids.items():
        for id_, rows in _groups(ids[counted]):
            if len(rows) < SMALLEST_SLICE or (task.kind == "binary" and not _both(labels[rows])):
                continue
            losses = _metrics(task, old[rows], new[rows], labels[rows], weights[rows], LOSSES)
            slices.append((max((each.relative for each in losses.values()), default=0.0), feature, id_, rows))
    slices.sort(key=lambda each: (-each[0], each[1], each[2]))
    return TaskQuality(
        name=task.name,
        rows=len(old),
        metrics=_metrics(task, old, new, labels, weights),
        largest_difference=float(gaps.max(initial=0.0)),
        mean_difference=float(gaps.mean()) if len(gaps) else 0.0,
        worst_slices=[
            SliceQuality(
                feature=feature,
                id=id_,
                rows=len(rows),
                metrics=_metrics(task, old[rows], new[rows], labels[rows], weights[rows]),
            )
            for _, feature, id_, rows in slices[:SHOWN_SLICES]
        ],
    )


def _groups(ids: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Positions of each id, ascending."""
    order = np.argsort(ids, kind="stable")
    found, starts = np.unique(ids[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, starts[1:]), strict=True)) if len(found) else []


def _both(labels: Floats) -> bool:
    """True if there are enough rows of each label."""
    return min(int(np.count_nonzero(labels > 0)), int(np.count_nonzero(labels <= 0))) >= 20


def _metrics(
    task: TaskConfig, old: Floats, new: Floats, labels: Floats, weights: Floats, names: Sequence[str] | None = None
) -> dict[str, Change]:
    """Metrics of single rows, of all names or of some."""
    return {
        name: Change(fp32=_known(metric(old, labels, weights)), stored=_known(metric(new, labels, weights)))
        for name, metric in METRICS[task.kind].items()
        if not metric.of_positions and name != "positives" and (names is None or name in names)
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
