"""Tables of a comparison of runs: progress, metrics, and differences between configurations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from dlrm_mtl.console import clock
from dlrm_mtl.metrics import ALL_METRICS, METRICS, Metric
from dlrm_mtl.reports.groups import Group, Paired, differences, mean_and_interval, paired_difference
from dlrm_mtl.reports.page import Cell, PageTable
from dlrm_mtl.reports.row_intervals import Interval
from dlrm_mtl.reports.runs import RecordedRun, same_data

HEADLINES = tuple(next(iter(of_kind)) for of_kind in METRICS.values())
"""Metrics in the terminal: the first of every kind."""

SPLITS = {
    "test": "Test split, best checkpoint",
    "validation": "Validation split, best step so far",
}


def runs_table(runs: Sequence[RecordedRun], colours: dict[str, str] | None = None) -> PageTable:
    """Table of every run's steps, time, speed, and clipped and skipped steps."""
    columns = ("run", "state", "seed", "step", "time", "rows/s", "waiting", "clipped steps", "skipped steps")
    rows = []
    for run in runs:
        seconds = run.total("seconds")
        rows.append(
            (
                Cell(run.label, colour=(colours or {}).get(run.label)),
                "finished" if run.finished else "not finished",
                str(run.seed),
                f"{run.step:,}",
                clock(seconds),
                _form("{:,.0f}", run.mean_over_time("rows_per_second")),
                _form("{:.0%}", run.mean_over_time("data_wait_share")),
                _form("{:,.0f}", run.last("clipped_steps")),
                _form("{:,.0f}", run.last("skipped_steps")),
            )
        )
    return PageTable(columns, rows, text_columns=2, caption="Runs")


def metric_tables(
    runs: Sequence[RecordedRun],
    groups: Sequence[Group],
    split: str,
    names: Iterable[str],
    intervals: Mapping[tuple[str, str], Interval] | None = None,
) -> list[PageTable]:
    """One table per metric: a row per run, a column per task; and one for groups of several seeds.

    Args:
        runs: the runs.
        groups: the same by configuration.
        split: ``test`` or ``validation``.
        names: metrics.
        intervals: intervals over rows to show, by the label of a run and ``TASK/METRIC``.
    """
    several = [group for group in groups if len(group.runs) > 1]
    tables = []
    for name in names:
        metric = ALL_METRICS[name]
        tasks = _tasks_with(runs, split, name)
        if not tasks:
            continue
        caption = f"{SPLITS[split]}: {metric.heading}"
        found = [[run.metrics(split).get(f"{task}/{name}", math.nan) for task in tasks] for run in runs]
        best = _best(found, name, metric) if same_data(runs) else [set[float]()] * len(tasks)
        rows: list[list[str | Cell]] = []
        for run, row in zip(runs, found, strict=True):
            ends = [(intervals or {}).get((run.label, f"{task}/{name}")) for task in tasks]
            each = zip(row, best, ends, strict=True)
            rows.append([run.label, *(_cell(metric, value, good, interval) for value, good, interval in each)])
        tables.append(PageTable(("run", *tasks), rows, caption=caption))
        rows = []
        for group in several:
            cells = [_with_interval(group, split, f"{task}/{name}", metric) for task in tasks]
            rows.append([group.label, str(len(group.runs)), *cells])
        if rows:
            columns = ("runs that differ only in their seed", "seeds", *tasks)
            tables.append(PageTable(columns, rows, caption=f"{caption}, mean ± half of the 95 % interval"))
    return tables


def paired_tables(groups: Sequence[Group], split: str, names: Iterable[str]) -> list[PageTable]:
    """Differences to the first group, paired by seed; one table per metric, none without two common seeds and the same data."""
    if not groups:
        return []
    baseline, *others = groups
    others = [group for group in others if same_data([baseline.runs[0], group.runs[0]])]
    tables = []
    for name in names:
        metric = ALL_METRICS[name]
        tasks = _tasks_with([run for group in groups for run in group.runs], split, name)
        rows: list[list[str | Cell]] = []
        for group in others:
            found = [_paired(group, baseline, split, f"{task}/{name}") for task in tasks]
            if any(found):
                seeds = max(pair.seeds for pair in found if pair)
                rows.append([group.label, str(seeds), *(_paired_cell(metric, pair) for pair in found)])
        if rows:
            caption = (
                f"{SPLITS[split]}: {metric.heading}, difference to {baseline.label}, paired by seed (95 % interval)"
            )
            tables.append(PageTable(("runs", "common seeds", *tasks), rows, caption=caption))
    return tables


def _tasks_with(runs: Sequence[RecordedRun], split: str, name: str) -> list[str]:
    """Tasks with the metric ``name`` on a split in any run; the mean over tasks comes last."""
    keys = dict.fromkeys(key for run in runs for key in run.metrics(split))
    tasks = [key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] == name]
    return sorted(tasks, key=lambda task: task == "mean")


def _paired(group: Group, baseline: Group, split: str, key: str) -> Paired | None:
    return paired_difference(group, baseline, lambda run: run.metrics(split).get(key, math.nan))


def _paired_cell(metric: Metric, pair: Paired | None) -> Cell:
    if pair is None:
        return Cell("-")
    text = f"{'+' if pair.mean >= 0 else '-'}{metric.form.format(abs(pair.mean))} ± {metric.form.format(pair.half)}"
    return Cell(text, strong=pair.clear)


def difference_tables(groups: Sequence[Group]) -> list[PageTable]:
    """Tables of the configuration keys in which groups differ; none for a single group or equal configurations."""
    found = differences([group.runs[0] for group in groups])
    found = {key: values for key, values in found.items() if key not in ("seed", "name")}
    # Options of different parts cannot be compared: the parts' names are enough.
    unlike = {key.removesuffix("name") for key in found if key.endswith(".name")}
    found = {
        key: values
        for key, values in found.items()
        if None not in values or not any(key.startswith(part) for part in unlike)
    }
    if not found:
        return []
    rows = [[key, *("-" if value is None else str(value) for value in values)] for key, values in found.items()]
    labels = [group.label for group in groups]
    return [PageTable(("key", *labels), rows, text_columns=1 + len(labels), caption="Where the configurations differ")]


def _best(rows: Sequence[Sequence[float]], name: str, metric: Metric) -> list[set[float]]:
    """Best value of every column, if there is a choice and the metric has a direction."""
    best = []
    for column in zip(*rows, strict=True):
        finite = [value for value in column if math.isfinite(value)]
        chosen = len(finite) > 1 and name not in ("calibration", "positives")
        best.append({min(finite) if metric.lower_is_better else max(finite)} if chosen else set())
    return best


def _with_interval(group: Group, split: str, key: str, metric: Metric) -> str:
    found = [run.metrics(split)[key] for run in group.runs if math.isfinite(run.metrics(split).get(key, math.nan))]
    mean, half = mean_and_interval(found)
    text = _form(metric.form, mean)
    if math.isfinite(half):
        text += f" ± {metric.form.format(half)}"
    return text if len(found) == len(group.runs) else f"{text} ({len(found)} of {len(group.runs)})"


def _cell(metric: Metric, value: float, best: set[float], interval: Interval | None) -> Cell:
    note = "" if interval is None else " to ".join(metric.form.format(end) for end in interval)
    return Cell(_form(metric.form, value), strong=value in best, note=note)


def _form(form: str, value: float) -> str:
    return form.format(value) if math.isfinite(value) else "-"
