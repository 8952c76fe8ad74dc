"""Methods side by side on the test split: values of every seed as JSON, means and differences seed by seed as tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.reports.groups import mean_and_interval
from dlrm_mtl.reports.page import Cell, PageTable
from studies.frame import Training

Figures = Mapping[str, Any]
"""By method: ``seeds``, ``point`` (the tuned values), ``test`` by metric and ``logged`` by scalar, in the order of seeds."""


def compare(trainings: Sequence[Training], keys: Iterable[str], logged: Iterable[str] = ()) -> dict[str, Any]:
    """Figures of the final trainings of each method, in the order of the methods.

    Args:
        trainings: trainings of one sweep.
        keys: metrics on the test split, ``TASK/METRIC``.
        logged: scalars of metrics.jsonl, of which the mean over the training is taken; those that a run lacks are left out.
    """
    keys, logged = list(keys), list(logged)
    found: dict[str, Any] = {}
    for training in trainings:
        if not training.final:
            continue
        own = found.setdefault(
            training.method,
            {"point": dict(training.point), "seeds": [], "test": {key: [] for key in keys}, "logged": {}},
        )
        own["seeds"].append(training.seed)
        test = training.run.test or {}
        for key in keys:
            value = test.get(key, math.nan)
            own["test"][key].append(round(value, 6) if math.isfinite(value) else None)
        for name in logged:
            curve = training.run.curves.get(("train", name))
            if curve is not None:
                own["logged"].setdefault(name, []).append(float(f"{statistics.fmean(curve.values.tolist()):.4g}"))
    return found


def means_table(
    figures: Figures, keys: Sequence[str], caption: str, more: Mapping[str, Mapping[str, str]] = {}
) -> PageTable:
    """Mean and 95 % interval of each method.

    Args:
        figures: what :func:`compare` returned.
        keys: metrics, one column each.
        caption: caption of the table.
        more: further columns: by head, the cell of each method.
    """
    rows = [
        [name, *(cells.get(name, "") for cells in more.values()), *(_mean(own["test"][key]) for key in keys)]
        for name, own in figures.items()
    ]
    return PageTable(["method", *more, *keys], rows, caption=caption)


def differences_table(figures: Figures, baseline: str, keys: Sequence[str], caption: str) -> PageTable:
    """Differences to a method over common seeds, mean and 95 % interval; bold if the interval excludes 0."""
    rows: list[list[str | Cell]] = []
    for name in figures:
        if name == baseline or baseline not in figures:
            continue
        row: list[str | Cell] = [name]
        for key in keys:
            mean, half = difference(figures, name, baseline, key)
            text = "-" if not math.isfinite(mean) else _signed(mean, half, key)
            row.append(Cell(text, strong=math.isfinite(half) and abs(mean) > half))
        rows.append(row)
    return PageTable(["method", *keys], rows, caption=caption)


def difference(figures: Figures, name: str, baseline: str, key: str) -> tuple[float, float]:
    """Mean difference of ``name`` to ``baseline`` over common seeds, and half its 95 % interval."""
    ours, theirs = (_by_seed(figures[each], key) for each in (name, baseline))
    return mean_and_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def logged_table(figures: Figures, columns: Mapping[str, str], caption: str) -> PageTable:
    """Means over seeds of logged scalars, for the methods that have one; ``columns`` has the scalar of each head."""
    rows = []
    for name, own in figures.items():
        values = [own["logged"].get(scalar) for scalar in columns.values()]
        if any(values):
            rows.append([name, *(f"{statistics.fmean(value):.3g}" if value else "" for value in values)])
    return PageTable(["method", *columns], rows, caption=caption)


def _by_seed(own: Mapping[str, Any], key: str) -> dict[int, float]:
    return {seed: value for seed, value in zip(own["seeds"], own["test"][key], strict=True) if value is not None}


def _mean(values: Sequence[float | None]) -> str:
    finite = [value for value in values if value is not None]
    if not finite:
        return "-"
    mean, half = mean_and_interval(finite)
    return f"{mean:.4f}" + (f" ± {half:.4f}" if math.isfinite(half) else "")


def _signed(mean: float, half: float, key: str) -> str:
    assert key.rpartition("/")[2] in ALL_METRICS
    return f"{mean:+.4f}" + (f" ± {half:.4f}" if math.isfinite(half) else "")
