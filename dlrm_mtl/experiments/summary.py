"""What a sweep shows: tables and plots of points and methods, and the figures as JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dlrm_mtl
from dlrm_mtl.console import console
from dlrm_mtl.core.machine import processor
from dlrm_mtl.experiments.config import Interval
from dlrm_mtl.experiments.sweep import SweepResult, Tried, describe, lower_is_better
from dlrm_mtl.experiments.trials import Outcome
from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.reports.groups import mean_and_interval
from dlrm_mtl.reports.page import Cell, Figure, Page, PageTable, Section
from dlrm_mtl.reports.plots import COLOURS, Line, line_plot
from dlrm_mtl.reports.terminal import rich_table

HEADLINES = ("auc", "log_loss", "rmse", "mrr")
"""Metrics in tables of final trainings."""
MOST_POINTS = 15
"""Most points in the table of the terminal."""


def as_json(result: SweepResult) -> dict[str, Any]:
    """All figures of a sweep, and where they are from."""
    return {
        "metric": result.metric,
        "seeds": {"tuning": result.config.tuning_seeds, "final": result.config.fresh_seeds},
        "machine": {"processor": processor(), "python": platform.python_version()},
        "versions": {"dlrm_mtl": dlrm_mtl.__version__, "torch": str(torch.__version__)},
        "points": [
            {
                "method": tried.method,
                "number": tried.number,
                "point": tried.point,
                "value": _number(tried.value(result.metric, result.worst)),
                "outcomes": {outcome.name: outcome.status for outcome in tried.outcomes},
            }
            for tried in result.tried
            if tried.outcomes
        ],
        "best": {name: best.point for name in result.config.all_methods if (best := result.best(name)) is not None},
        "final": {
            method: {
                split: {key: _spread([getattr(each, split).get(key, math.nan) for each in outcomes]) for key in keys}
                for split, keys in (("validation", final_keys(result)), ("test", final_keys(result)))
            }
            for method, outcomes in result.finals.items()
        },
        "failed": {outcome.name: outcome.reason for outcome in result.failed},
    }


def final_keys(result: SweepResult) -> list[str]:
    """Metrics of the final trainings, ``TASK/METRIC``: the headlines of every task, and the one that chose."""
    found: dict[str, None] = {result.metric: None}
    for outcomes in result.finals.values():
        for outcome in outcomes:
            for key in [*outcome.test, *outcome.validation]:
                if key.rpartition("/")[2] in HEADLINES:
                    found[key] = None
    return list(found)


def points_table(result: SweepResult, most: int | None = MOST_POINTS) -> PageTable:
    """The best points first, with the mean of the metric over seeds."""
    sign = 1.0 if lower_is_better(result.metric) else -1.0
    tried = [each for each in result.tried if each.outcomes]
    tried.sort(key=lambda each: sign * each.value(result.metric, result.worst))
    best = {id(result.best(name)) for name in result.config.all_methods}
    keys = list(dict.fromkeys(key for each in tried for key in each.point))
    methods = [] if list(result.config.all_methods) == ["all"] else ["method"]
    rows: list[list[str | Cell]] = []
    for each in tried[:most]:
        strong = id(each) in best
        values = [str(each.point.get(key, "")) for key in keys]
        names = [each.method] if methods else []
        rows.append([Cell(text, strong) for text in [*names, *map(_short_number, values), *_value(each, result)]])
    caption = f"{result.metric} on the validation split, best points first"
    if most is not None and len(tried) > most:
        caption += f" ({most} of {len(tried)})"
    columns = [
        *methods,
        *(key.rpartition(".")[2] for key in keys),
        result.metric.rpartition("/")[2],
        "seeds",
        "outcome",
    ]
    return PageTable(columns, rows, text_columns=len(methods), caption=caption)


def _value(tried: Tried, result: SweepResult) -> list[str]:
    value = tried.value(result.metric, result.worst)
    statuses = [outcome.status for outcome in tried.outcomes]
    odd = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses) if status != "finished"]
    shown = ALL_METRICS[result.metric.rpartition("/")[2]].form.format(value) if math.isfinite(value) else "-"
    return [shown, str(len(statuses)), ", ".join(odd)]


def final_tables(result: SweepResult, split: str = "test") -> list[PageTable]:
    """Methods on fresh seeds: mean and 95 % interval, and the difference to the baseline seed by seed."""
    if not any(getattr(outcome, split) for outcomes in result.finals.values() for outcome in outcomes):
        return []
    keys = [
        key for key in final_keys(result) if any(key in getattr(o, split) for os in result.finals.values() for o in os)
    ]
    seeds = len(result.config.fresh_seeds)
    tables = [
        PageTable(
            ["method", *keys],
            [[name, *(_cell(outcomes, split, key) for key in keys)] for name, outcomes in result.finals.items()],
            caption=f"{split} split, best point of each method on {seeds} fresh seeds: mean and 95 % interval",
        )
    ]
    baseline = result.config.baseline or next(iter(result.config.all_methods))
    others = [name for name in result.finals if name != baseline]
    if baseline in result.finals and others and seeds > 1:
        rows: list[list[str | Cell]] = []
        for name in others:
            row: list[str | Cell] = [name]
            for key in keys:
                mean, half = paired(result.finals[name], result.finals[baseline], split, key)
                row.append(Cell(_signed(mean, half, key), strong=abs(mean) > half))
            rows.append(row)
        caption = f"{split} split, difference to {baseline} seed by seed: mean and 95 % interval; bold excludes 0"
        tables.append(PageTable(["method", *keys], rows, caption=caption))
    return tables


def paired(own: Sequence[Outcome], other: Sequence[Outcome], split: str, key: str) -> tuple[float, float]:
    """Mean difference of a metric over common seeds, and half its 95 % interval."""

    def by_seed(outcomes: Sequence[Outcome]) -> dict[str, float]:
        return {outcome.name.rpartition("-seed")[2]: getattr(outcome, split).get(key, math.nan) for outcome in outcomes}

    first, second = by_seed(own), by_seed(other)
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    return mean_and_interval([value for value in differences if math.isfinite(value)])


def plots(result: SweepResult) -> list[Figure]:
    """The metric against each parameter that has numbers: the best value of every method there."""
    figures = []
    keys = list(dict.fromkeys(key for each in result.tried for key in each.point))
    for key in keys:
        lines = []
        for number, method in enumerate(result.config.all_methods):
            best: dict[float, float] = {}
            for tried in result.tried:
                place, value = (
                    tried.point.get(key),
                    tried.value(result.metric, math.nan) if tried.outcomes else math.nan,
                )
                if tried.method != method or isinstance(place, bool | str) or not isinstance(place, int | float):
                    continue
                if math.isfinite(value):
                    pick = min if lower_is_better(result.metric) else max
                    best[float(place)] = pick(best.get(float(place), value), value)
            if best:
                x = np.array(sorted(best))
                lines.append(Line(x, np.array([best[place] for place in x]), COLOURS[number % len(COLOURS)]))
        if sum(len(line.x) for line in lines) > 1:
            places = [place for line in lines for place in line.x]
            logarithmic = min(places) > 0 and max(places) / min(places) >= 8
            title = f"{result.metric} by {key.rpartition('.')[2]}"
            figures.append(Figure(line_plot(title, lines, key, logarithmic_x=logarithmic), title))
    return figures


def show(result: SweepResult, folder: Path, html: Path | None = None) -> None:
    """Print the tables, and write the page if asked for.

    Raises:
        UserError: the page cannot be written.
    """
    out = console()
    for table in [points_table(result), *final_tables(result)]:
        out.print(rich_table(table))
    for name in result.config.all_methods:
        best = result.best(name)
        if best is not None and best.point:
            out.print(f"best point{'' if name == 'all' else f' of {name}'}: {describe(best.point)}", soft_wrap=True)
        edges = at_edges(result, best) if best else []
        for key in edges:
            out.print(f"note: {name}: the best {key} is at the edge of what was tried; widen it", soft_wrap=True)
    if result.failed:
        out.print(f"{len(result.failed)} training(s) failed; started again, the sweep tries them again", soft_wrap=True)
    if html is not None:
        page(result, folder).write(html)
        out.print(f"{html}: written; open it in a browser")


def at_edges(result: SweepResult, best: Tried) -> list[str]:
    """Parameters whose best value is the smallest or largest one that was listed."""
    edges = []
    for key, choices in result.config.parameters_of(best.method).items():
        value = best.point[key]
        if isinstance(choices, Interval) or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        numbers = [each for each in choices if isinstance(each, int | float)]
        if len(numbers) > 2 and value in (min(numbers), max(numbers)):
            edges.append(key)
    return edges


def page(result: SweepResult, folder: Path) -> Page:
    """All tables and plots of a sweep as a page."""
    methods = list(result.config.all_methods)
    legend = [] if methods == ["all"] else [(COLOURS[n % len(COLOURS)], name) for n, name in enumerate(methods)]
    sections = []
    finals = [*final_tables(result), *final_tables(result, "validation")]
    if finals:
        sections.append(Section("Methods", "Chosen on validation data, trained again on fresh seeds.", finals))
    sections.append(Section("Parameters", tables=[points_table(result, None)], figures=plots(result)))
    if result.failed:
        rows = [[outcome.name, outcome.reason] for outcome in result.failed]
        sections.append(Section("Failed trainings", tables=[PageTable(["training", "reason"], rows, text_columns=2)]))
    subtitle = (
        f"{result.config.config}, {len(result.tried)} points, seeds {result.config.tuning_seeds}; {source_line()}"
    )
    return Page(f"Sweep: {folder.name}", subtitle, legend, sections)


def source_line() -> str:
    """Versions and machine behind figures."""
    return f"dlrm_mtl {dlrm_mtl.__version__}, torch {torch.__version__}, {processor()}"


def _cell(outcomes: Sequence[Outcome], split: str, key: str) -> str:
    values = [getattr(outcome, split).get(key, math.nan) for outcome in outcomes]
    finite = [value for value in values if math.isfinite(value)]
    mean, half = mean_and_interval(finite)
    if not finite:
        return "-"
    form = ALL_METRICS[key.rpartition("/")[2]].form
    lost = len(values) - len(finite)
    return (
        form.format(mean) + (f" ± {half:.4f}" if math.isfinite(half) else "") + (f" ({lost} undefined)" if lost else "")
    )


def _signed(mean: float, half: float, key: str) -> str:
    if not math.isfinite(mean):
        return "-"
    return f"{mean:+.4f}" + (f" ± {half:.4f}" if math.isfinite(half) else "")


def _spread(values: Sequence[float]) -> dict[str, Any]:
    mean, half = mean_and_interval([value for value in values if math.isfinite(value)])
    return {"mean": _number(mean), "half_95": _number(half), "values": [_number(value) for value in values]}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short_number(text: str) -> str:
    try:
        return f"{float(text):.4g}" if "." in text or "e" in text else text
    except ValueError:
        return text
