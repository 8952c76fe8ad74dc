"""Section of a page: metrics of the slices of a split, with their support."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.reports.comparison_tables import HEADLINES
from dlrm_mtl.reports.page import Cell, PageTable, Section
from dlrm_mtl.reports.run_files import numbers
from dlrm_mtl.reports.runs import RecordedRun

MOST_METRICS = 6
"""Most metrics in the tables of a single run."""

SliceTasks = Mapping[str, Mapping[str, Any]]
"""Of a slice by task: ``rows``, ``positives`` and ``metrics``."""


def slice_sections(runs: Sequence[RecordedRun]) -> list[Section]:
    """A section for each split with slices: a table for each column and task.

    Of one run it shows several metrics, of more runs the first metric of the task's kind.
    """
    sections = []
    for split in ("test", "validation"):
        found = {run.label: slices for run in runs if (slices := read_slices(run, split))}
        columns = dict.fromkeys(column for slices in found.values() for column in slices)
        tables = [table for column in columns for table in _tables(column, found)]
        if tables:
            text = (
                "Rows that count for the task; without an interval: mind the support. Bars: share of the largest slice."
            )
            title = "Slices of the test split" if split == "test" else "Slices of the validation split"
            sections.append(Section(title, text=text, tables=tables, folded=len(tables) > 8))
    return sections


def read_slices(run: RecordedRun, split: str) -> dict[str, dict[str, SliceTasks]]:
    """Tasks by column and label of a slice; what has another form is left out."""
    result: dict[str, dict[str, SliceTasks]] = {}
    for slicing in _dicts(run.content.slices.get(split)):
        own = result.setdefault(str(slicing.get("column")), {})
        for part in _dicts(slicing.get("slices")):
            tasks = part.get("tasks")
            if isinstance(tasks, dict):
                own[str(part.get("label"))] = {str(name): each for name, each in tasks.items() if _complete(each)}
    return result


def _dicts(content: Any) -> list[dict[str, Any]]:
    return [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []


def _complete(task: Any) -> bool:
    return isinstance(task, dict) and isinstance(task.get("rows"), int) and isinstance(task.get("metrics"), dict)


def _tables(column: str, found: Mapping[str, Mapping[str, Mapping[str, SliceTasks]]]) -> list[PageTable]:
    """A table for each task of a column, which some of the runs have."""
    own = {run: slices[column] for run, slices in found.items() if column in slices}
    labels = list(dict.fromkeys(label for slices in own.values() for label in slices))
    tasks = dict.fromkeys(task for slices in own.values() for each in slices.values() for task in each)
    tables = []
    for task in tasks:
        metrics = _metrics(task, own)
        if len(own) > 1:
            metrics = metrics[:1]
        if not metrics:
            continue
        support = [_first(task, label, own) for label in labels]
        most = max((each["rows"] for each in support if each), default=0) or 1
        rows: list[list[str | Cell]] = []
        for label, each in zip(labels, support, strict=True):
            if each is None:
                continue
            positives = each.get("positives")
            row: list[str | Cell] = [label, Cell(f"{each['rows']:,}", bar=each["rows"] / most)]
            row.append(f"{positives:,}" if isinstance(positives, int) else "-")
            row += [_value(slices.get(label, {}).get(task), name) for name in metrics for slices in own.values()]
            rows.append(row)
        headings = [ALL_METRICS[name].heading for name in metrics] if len(own) == 1 else list(own)
        caption = f"{task} by {column}" + (f": {ALL_METRICS[metrics[0]].heading}" if len(own) > 1 else "")
        tables.append(PageTable((column, "rows", "positives", *headings), rows, caption=caption))
    return tables


def _metrics(task: str, own: Mapping[str, Mapping[str, SliceTasks]]) -> list[str]:
    """Known metrics of a task, the headlines first."""
    there = dict.fromkeys(
        name for slices in own.values() for each in slices.values() if task in each for name in each[task]["metrics"]
    )
    known = [name for name in there if name in ALL_METRICS and name != "positives"]
    return sorted(known, key=lambda name: name not in HEADLINES)[:MOST_METRICS]


def _first(task: str, label: str, own: Mapping[str, Mapping[str, SliceTasks]]) -> Mapping[str, Any] | None:
    """The slice in the first run that has it; support is a fact of the data."""
    return next((slices[label][task] for slices in own.values() if task in slices.get(label, {})), None)


def _value(task: Mapping[str, Any] | None, name: str) -> str:
    value = numbers(dict(task["metrics"])).get(name, math.nan) if task else math.nan
    return ALL_METRICS[name].form.format(value) if math.isfinite(value) else "-"
