"""Runs that differ only in their seed: means and confidence intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from dlrm_mtl.reports.runs import Curve, RecordedRun

Floats = NDArray[np.float64]

NOT_COMPARED = ("seed", "name")
"""Keys that are ignored in grouping."""


@dataclass(frozen=True)
class Group:
    """Runs with equal configurations except the seed; among runs with the same seed, only the first counts."""

    runs: tuple[RecordedRun, ...]
    repeated: tuple[RecordedRun, ...] = ()
    """Runs whose seed another run of the group also has: not independent samples."""

    @property
    def label(self) -> str:
        """Label of the first run, and the number of further seeds."""
        first = self.runs[0].label
        return (
            f"{first} and {len(self.runs) - 1} more seeds"
            if len(self.runs) > 2
            else " and ".join(run.label for run in self.runs)
        )


@dataclass(frozen=True)
class Paired:
    """A difference between two groups of runs, paired by seed."""

    mean: float
    half: float
    """Half the width of the 95 % interval of the mean, by Student's t distribution."""
    seeds: int

    @property
    def clear(self) -> bool:
        """True if the interval excludes 0."""
        return abs(self.mean) > self.half


def group_runs(runs: Sequence[RecordedRun]) -> list[Group]:
    """Group ``runs``, in the order in which groups first appear; runs of different data are never in one group."""
    found: dict[str, list[RecordedRun]] = {}
    for run in runs:
        rest = {key: value for key, value in run.config.items() if key not in NOT_COMPARED}
        found.setdefault(json.dumps([run.data, rest], sort_keys=True, default=str), []).append(run)
    groups = []
    for members in found.values():
        first: dict[Any, RecordedRun] = {}
        repeated = [run for run in members if first.setdefault(run.seed, run) is not run]
        groups.append(Group(tuple(first.values()), tuple(repeated)))
    return groups


def differences(runs: Sequence[RecordedRun]) -> dict[str, list[Any]]:
    """Configuration keys whose values differ, with every run's value; None for a run without the key."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t distribution; nan for fewer than two values."""
    if not values:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    if len(values) < 2 or not math.isfinite(mean):
        return mean, math.nan
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, student_t(0.975, len(values) - 1) * deviation / math.sqrt(len(values))


def mean_curve(curves: Sequence[Curve]) -> tuple[Floats, Floats, Floats]:
    """Steps that all curves have [n], the mean there, and half the width of its 95 % interval."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    rows = []
    for curve in curves:
        unique, first = np.unique(curve.steps, return_index=True)
        rows.append(curve.values[first[np.isin(unique, steps)]])
    values = np.array(rows)
    half = student_t(0.975, len(curves) - 1) * values.std(axis=0, ddof=1) / math.sqrt(len(curves))
    return np.unique(steps), values.mean(axis=0), half


def paired_difference(group: Group, baseline: Group, value: Callable[[RecordedRun], float]) -> Paired | None:
    """Differences of ``value`` between runs of two groups with the same seed; None for fewer than two common seeds."""
    of_seed = {run.seed: value(run) for run in baseline.runs}
    pairs = [(value(run), of_seed[run.seed]) for run in group.runs if run.seed in of_seed]
    found = [own - other for own, other in pairs if math.isfinite(own) and math.isfinite(other)]
    if len(found) < 2:
        return None
    mean, half = mean_and_interval(found)
    return Paired(mean, half, len(found))


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution."""
    return float(stdtrit(freedom, probability))
