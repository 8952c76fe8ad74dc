"""``dlrm-mtl compare``: trained runs side by side, in the terminal and as a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from dlrm_mtl.console import clock, console
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.metrics import ALL_METRICS, METRICS, Metric
from dlrm_mtl.reports.groups import Group, differences, group_runs, mean_and_interval
from dlrm_mtl.reports.page import Cell, Table
from dlrm_mtl.reports.runs import Run, read_runs
from dlrm_mtl.reports.terminal import rich_table

HEADLINES = tuple(next(iter(of_kind)) for of_kind in METRICS.values())
"""Metrics that the terminal shows: the first of every kind."""

SPLITS = {
    "test": "Test split, best checkpoint",
    "validation": "Validation split, best step so far",
}


def compare_runs(paths: Sequence[Path], html: Path | None = None, metrics: Sequence[str] = ()) -> None:
    """Print how the runs in ``paths`` compare, and write a page with their curves.

    Args:
        paths: folders of runs, finished or not.
        html: where the page goes, if anywhere.
        metrics: what the terminal shows of every task; default: :data:`HEADLINES`.

    Raises:
        UserError: a folder holds no run, there is no such metric, or the page cannot be written.
    """
    for metric in metrics:
        if metric not in ALL_METRICS:
            raise UserError(f"compare: --metric: there is no metric {metric!r}; {suggest(metric, ALL_METRICS)}.")
    runs = read_runs(paths)
    groups = group_runs(runs)
    out = console()
    tables = [runs_table(runs)]
    for split in SPLITS:
        tables += metric_tables(runs, groups, split, metrics or HEADLINES)
    for table in [*tables, *difference_tables(groups)]:
        out.print(rich_table(table))
    for note in notes(groups):
        out.print(f"note: {note}")
    if html is not None:
        from dlrm_mtl.reports.compare_page import comparison_page  # plots only where they are wanted

        comparison_page(runs, groups).write(html)
        out.print(f"{html}: written; open it in a browser")


def runs_table(runs: Sequence[Run], colours: dict[str, str] | None = None) -> Table:
    """What every run did: steps, time, speed, trouble."""
    columns = ("run", "state", "seed", "step", "time", "rows/s", "waiting", "clipped steps", "skipped steps")
    rows = []
    for run in runs:
        seconds = run.total("seconds")
        rows.append(
            (
                Cell(run.label, colour=(colours or {}).get(run.label)),
                "finished" if run.test is not None else "not finished",
                str(run.seed),
                f"{run.step:,}",
                clock(seconds),
                _form("{:,.0f}", run.mean_over_time("rows_per_second")),
                _form("{:.0%}", run.mean_over_time("data_wait_share")),
                _form("{:,.0f}", run.last("clipped_steps")),
                _form("{:,.0f}", run.last("skipped_steps")),
            )
        )
    return Table(columns, rows, text_columns=2, caption="Runs")


def metric_tables(runs: Sequence[Run], groups: Sequence[Group], split: str, names: Iterable[str]) -> list[Table]:
    """One table per metric: a row per run, a column per task; and one for groups of several seeds."""
    several = [group for group in groups if len(group.runs) > 1]
    tables = []
    for name in names:
        metric = ALL_METRICS[name]
        keys = dict.fromkeys(key for run in runs for key in values(run, split))
        tasks = [key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] == name]
        tasks.sort(key=lambda task: task == "mean")
        if not tasks:
            continue
        caption = f"{SPLITS[split]}: {metric.heading}"
        found = [[values(run, split).get(f"{task}/{name}", math.nan) for task in tasks] for run in runs]
        best = _best(found, name, metric)
        rows: list[list[str | Cell]] = []
        for run, row in zip(runs, found, strict=True):
            rows.append([run.label, *(_cell(metric, value, good) for value, good in zip(row, best, strict=True))])
        tables.append(Table(("run", *tasks), rows, caption=caption))
        rows = []
        for group in several:
            cells = [_with_interval(group, split, f"{task}/{name}", metric) for task in tasks]
            rows.append([group.label, str(len(group.runs)), *cells])
        if rows:
            columns = ("runs that differ only in their seed", "seeds", *tasks)
            tables.append(Table(columns, rows, caption=f"{caption}, mean ± half of the 95 % interval"))
    return tables


def difference_tables(groups: Sequence[Group]) -> list[Table]:
    """Configuration keys in which groups differ; none if there is a single group, or nothing differs."""
    found = differences([group.runs[0] for group in groups])
    found = {key: values for key, values in found.items() if key not in ("seed", "name")}
    if not found:
        return []
    rows = [[key, *("-" if value is None else str(value) for value in values)] for key, values in found.items()]
    labels = [group.label for group in groups]
    return [Table(("key", *labels), rows, text_columns=1 + len(labels), caption="Where the configurations differ")]


def notes(groups: Sequence[Group]) -> list[str]:
    """What a reader of the numbers must know."""
    return [
        f"{run.label} has seed {run.seed}, as has {next(other.label for other in group.runs if other.seed == run.seed)}; "
        "it is left out of means and intervals"
        for group in groups
        for run in group.repeated
    ]


def values(run: Run, split: str) -> dict[str, float]:
    """A run's metrics on a split; empty if it has none yet."""
    return (run.test if split == "test" else run.validation) or {}


def _best(rows: Sequence[Sequence[float]], name: str, metric: Metric) -> list[set[float]]:
    """For every column the best value, if there is something to choose and the metric has a best side."""
    best = []
    for column in zip(*rows, strict=True):
        finite = [value for value in column if math.isfinite(value)]
        chosen = len(finite) > 1 and name not in ("calibration", "positives")
        best.append({min(finite) if metric.lower_is_better else max(finite)} if chosen else set())
    return best


def _with_interval(group: Group, split: str, key: str, metric: Metric) -> str:
    found = [values(run, split)[key] for run in group.runs if math.isfinite(values(run, split).get(key, math.nan))]
    mean, half = mean_and_interval(found)
    text = _form(metric.form, mean)
    if math.isfinite(half):
        text += f" ± {metric.form.format(half)}"
    return text if len(found) == len(group.runs) else f"{text} ({len(found)} of {len(group.runs)})"


def _cell(metric: Metric, value: float, best: set[float]) -> Cell:
    return Cell(_form(metric.form, value), strong=value in best)


def _form(form: str, value: float) -> str:
    return form.format(value) if math.isfinite(value) else "-"
