"""Fitting of calibration maps on one split, and their errors on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.metrics.binary import log_loss, normalized_entropy
from dlrm_mtl.serve.calibration import (
    CalibrationMap,
    Doubles,
    IsotonicMap,
    KeptNegativesMap,
    Measured,
    Method,
    PlattMap,
    logit,
    sigmoid,
)
from dlrm_mtl.tasks.config import TaskConfig

BINS = 15
"""Number of bins of the expected calibration error."""
STEPS = 100
"""Largest number of steps of Newton's method; a few are enough."""


@dataclass(frozen=True)
class LabelledPredictions:
    """Raw predictions of a binary task, labels in {0, 1}, and weights > 0; each [N] float64."""

    predictions: Doubles
    labels: Doubles
    weights: Doubles


@dataclass(frozen=True)
class CalibrationChoice:
    """A method for a task."""

    method: Method
    kept: float | None = None
    """Share of the negatives that was kept, for ``negatives``."""


def choices_of(options: Sequence[str], tasks: Sequence[TaskConfig]) -> dict[str, CalibrationChoice]:
    """Choices by binary task from options such as ``platt``, ``is_like=isotonic`` and ``is_click=negatives:0.1``.

    Raises:
        UserError: an option has another form, or names no binary task.
    """
    binary = {task.name: task for task in tasks if task.kind == "binary"}
    found: dict[str, CalibrationChoice] = {}
    for text in sorted(options, key=lambda option: "=" in option):  # one task comes before all tasks
        name, named, method = text.rpartition("=")
        method, _, share = method.partition(":")
        place = f"--calibrate {text}"
        if method not in get_args(Method):
            raise UserError(f"{place}: {method!r} is not a method; choose isotonic, platt or negatives:SHARE.")
        if named and name not in binary:
            raise UserError(f"{place}: there is no binary task {name!r}; {suggest(name, binary)}.")
        for task in [binary[name]] if named else binary.values():
            found[task.name] = CalibrationChoice(method, _kept(share, method, task, place))  # type: ignore[arg-type]
    return found


def _kept(share: str, method: str, task: TaskConfig, place: str) -> float | None:
    """Share of the negatives that was kept: as given, or as the task's weight of positives amounts to."""
    if method != "negatives":
        if share:
            raise UserError(f"{place}: {method} takes no number; leave {share!r} out.")
        return None
    if not share:
        if task.positive_weight <= 1:
            raise UserError(
                f"{place}: the share of the negatives of {task.name!r} that was kept is not known; add it, such as "
                "negatives:0.1."
            )
        return 1.0 / task.positive_weight
    try:
        kept = float(share)
    except ValueError:
        kept = np.nan
    if not 0 < kept <= 1:
        raise UserError(f"{place}: {share!r} is not a share of the negatives; give a number above 0 and up to 1.")
    return kept


def fit(choice: CalibrationChoice, data: LabelledPredictions, task: str, split: str) -> CalibrationMap:
    """The map of a task.

    Raises:
        UserError: there are no rows, only one class, or predictions that no map can be fitted to.
    """
    if choice.kept is not None:
        return KeptNegativesMap(kept=choice.kept)
    place = f"calibration of {task!r} on {split}"
    if not len(data.labels):
        raise UserError(f"{place}: no row has a label of this task; choose negatives:SHARE, or leave the task out.")
    if data.labels.min() == data.labels.max():
        raise UserError(
            f"{place}: all {len(data.labels):,} labels are {data.labels[0]:g}, so there is nothing to fit; use more rows, or "
            "leave the task out."
        )
    if data.predictions.min() == data.predictions.max():
        raise UserError(
            f"{place}: all predictions are {data.predictions[0]:g}, so there is nothing to fit; train the model first, or "
            "leave the task out."
        )
    return isotonic(data) if choice.method == "isotonic" else platt(data, place)


def isotonic(data: LabelledPredictions) -> IsotonicMap:
    """Monotone function with the least weighted squared error, by pooling adjacent violators (Ayer et al., 1955).

    A pool of weight n without positives gets 1 / (n + 2) instead of 0, by Laplace's rule, as far as the next pool's value
    allows, and one without negatives 1 minus that: a single row on the wrong side would otherwise have an infinite log loss.
    """
    x, places = np.unique(data.predictions, return_inverse=True)
    weights = np.bincount(places, data.weights)
    means = np.bincount(places, data.weights * data.labels) / weights
    values: list[float] = []
    sums: list[float] = []
    ends: list[int] = []
    for number, (value, weight) in enumerate(zip(means.tolist(), weights.tolist(), strict=True)):
        while values and values[-1] >= value:
            last, below = values.pop(), sums.pop()
            ends.pop()
            value, weight = (last * below + value * weight) / (below + weight), below + weight
        values.append(value)
        sums.append(weight)
        ends.append(number)
    if len(values) > 1:
        if values[0] == 0.0:
            values[0] = min(1.0 / (sums[0] + 2.0), values[1])
        if values[-1] == 1.0:
            values[-1] = max(1.0 - 1.0 / (sums[-1] + 2.0), values[-2])
    starts = [0, *(end + 1 for end in ends[:-1])]
    points: dict[float, float] = {}  # a pool of one prediction has one point
    for start, end, value in zip(starts, ends, values, strict=True):
        points |= {float(x[start]): value, float(x[end]): value}
    return IsotonicMap(predictions=list(points), probabilities=list(points.values()))


def platt(data: LabelledPredictions, place: str) -> PlattMap:
    """The line on the logit with the least weighted log loss, by Newton's method.

    Raises:
        UserError: there is none, as a threshold separates the classes, or predictions are the higher the rarer the label.
    """
    x, y, weights = logit(data.predictions), data.labels, data.weights / data.weights.sum()
    reverses = UserError(
        f"{place}: higher predictions have fewer positives, so that the line would reverse the order; leave the task out."
    )
    if x[y == 1].min() >= x[y == 0].max():
        raise UserError(f"{place}: a threshold separates all positives from all negatives; use isotonic, or more rows.")
    if x[y == 1].max() <= x[y == 0].min():
        raise reverses
    centre, scale = np.average(x, weights=weights), x.std() or 1.0
    design = np.stack([(x - centre) / scale, np.ones_like(x)], axis=1)
    rate = np.average(y, weights=weights)
    found = np.array([0.0, np.log(rate / (1.0 - rate))])

    def loss(parameters: Doubles) -> float:
        z = design @ parameters
        return float((weights * (np.logaddexp(0.0, z) - y * z)).sum())

    for _ in range(STEPS):
        p = sigmoid(design @ found)
        gradient = design.T @ (weights * (p - y))
        hessian = (design * (weights * p * (1.0 - p))[:, None]).T @ design + 1e-15 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while loss(found - size * step) > loss(found) and size > 1e-6:
            size /= 2
        found = found - size * step
        if np.abs(step).max() < 1e-10:
            break
    slope = float(found[0] / scale)
    if slope <= 0:
        raise reverses
    return PlattMap(slope=slope, intercept=float(found[1] - slope * centre))


def measure_calibration(found: CalibrationMap, data: LabelledPredictions) -> Measured:
    """Errors of a task's predictions, before and after."""
    pairs: dict[str, list[float | None]] = {"ece": [], "ne": [], "log_loss": []}
    for predictions in (data.predictions, found.apply(data.predictions).astype(np.float32).astype(np.float64)):
        logits = logit(predictions)
        errors: Mapping[str, float] = {
            "ece": expected_calibration_error(predictions, data.labels, data.weights),
            "ne": normalized_entropy(logits, data.labels, data.weights),
            "log_loss": log_loss(logits, data.labels, data.weights),
        }
        for name, value in errors.items():
            pairs[name].append(value if np.isfinite(value) else None)
    return Measured.model_validate({"rows": len(data.labels), **{name: tuple(pair) for name, pair in pairs.items()}})


def expected_calibration_error(predictions: Doubles, labels: Doubles, weights: Doubles, bins: int = BINS) -> float:
    """Mean over bins of |mean prediction - mean label|, weighted by the bins; nan without rows.

    Bins hold equal numbers of rows in the order of the predictions (Nixon et al., 2019): most predictions of a rare task would
    share one of several bins of equal width.
    """
    if not len(labels):
        return float("nan")
    order = np.argsort(predictions, kind="stable")
    gaps = (weights * (predictions - labels))[order]
    parts = np.array_split(gaps, min(bins, len(gaps)))
    return float(sum(abs(part.sum()) for part in parts) / weights.sum())
