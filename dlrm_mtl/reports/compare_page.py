"""The page of ``dlrm-mtl compare``: tables, and every curve that the runs wrote, overlaid.

Panels come from the keys in metrics.jsonl: ``PREFIX/NAME`` is the panel NAME of the section PREFIX, so a new scalar needs
no change here. :data:`TRAINING` gives some prefixes a title, an order and an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.reports.comparison_tables import (
    HEADLINES,
    SPLITS,
    difference_tables,
    metric_tables,
    notes,
    paired_tables,
    runs_table,
)
from dlrm_mtl.reports.groups import Group, mean_curve
from dlrm_mtl.reports.page import Figure, Page, PageTable, Section
from dlrm_mtl.reports.plots import COLOURS, Line, line_plot
from dlrm_mtl.reports.runs import Curve, RecordedRun

MOST_PANELS = 12
"""Largest number of panels in a section; with more keys, the curves that move most are shown and a table names the others."""

OTHERS = tuple(name for name in ALL_METRICS if name not in (*HEADLINES, "positives"))
"""Metrics in a folded section; the number of positives is a fact of the data."""

NO_CURVE = ("train/seconds", "train/epoch")


@dataclass(frozen=True)
class Style:
    """Style of the panels of one prefix."""

    title: str
    text: str = ""
    logarithmic: bool = False
    folded: bool = False


TRAINING = {
    "loss": Style("Training losses", "Mean over the steps since the last entry."),
    "balancing/cosine": Style(
        "Cosines between the tasks' gradients", "Below 0, two tasks pull shared parameters apart."
    ),
    "balancing/norm": Style("Norms of the tasks' gradients", logarithmic=True),
    "balancing/coefficient": Style(
        "Coefficients of the tasks' gradients", "What balancing multiplies each gradient with."
    ),
    "balancing": Style("Gradient balancing"),
    "": Style(
        "Speed and steps",
        "Waiting share: time that training waited for data. Clipped and skipped steps are counts so far.",
    ),
    "factor": Style(
        "Clipping factors", "1: the update was applied as it was; less: it was made smaller.", logarithmic=True
    ),
    "largest_move": Style("Largest move of a table's weights", logarithmic=True, folded=True),
}

NAMES = {
    "rows_per_second": "rows per second",
    "data_wait_share": "waiting share",
    "rate_factor": "learning-rate factor",
    "skipped_steps": "skipped steps",
    "clipped_steps": "clipped steps",
}


def comparison_page(runs: Sequence[RecordedRun], groups: Sequence[Group]) -> Page:
    """Build the page for ``runs``, which ``groups`` holds by configuration."""
    colours = {group.label: COLOURS[number % len(COLOURS)] for number, group in enumerate(groups)}
    by_run = {run.label: colours[group.label] for group in groups for run in (*group.runs, *group.repeated)}
    several = any(len(group.runs) > 1 for group in groups)
    subtitle = "Thin lines are runs; thick ones the mean over seeds, with its 95 % interval." if several else ""
    page = Page(
        title=f"{len(runs)} run{'s' if len(runs) > 1 else ''} compared" if len(runs) > 1 else runs[0].label,
        subtitle=subtitle,
        legend=[(colour, label) for label, colour in colours.items()],
    )
    found = difference_tables(groups)
    page.sections.append(Section("Runs", text="; ".join(notes(groups)), tables=[_untitled(runs_table(runs, by_run))]))
    for split, title in SPLITS.items():
        for names, heading in ((HEADLINES, title), (OTHERS, f"{title}: other metrics")):
            tables = metric_tables(runs, groups, split, names) + paired_tables(groups, split, names)
            if tables:
                tables = [_retitled(table, table.caption.removeprefix(f"{title}: ")) for table in tables]
                folded = split == "validation" or names is OTHERS
                page.sections.append(Section(heading, tables=tables, folded=folded))
    if found:
        page.sections.append(Section("Where the configurations differ", tables=[_untitled(table) for table in found]))
    page.sections.extend(_validation_sections(groups, colours))
    page.sections.extend(_training_sections(groups, colours))
    return page


def _validation_sections(groups: Sequence[Group], colours: dict[str, str]) -> list[Section]:
    """One section per metric, one panel per task."""
    keys = _keys(groups, "validation")
    sections = []
    for name in (*HEADLINES, *OTHERS):
        own = [key for key in keys if key.rpartition("/")[2] == name]
        own.sort(key=lambda key: key.startswith("mean/"))
        if own:
            defined = [key for key in own if _defined(groups, "validation", key)]
            empty = [key.rpartition("/")[0] for key in own if key not in defined]
            text = f"Undefined everywhere: {', '.join(empty)}." if empty else ""
            panels = [_panel("validation", key, key.rpartition("/")[0], groups, colours) for key in defined]
            title = f"Validation: {ALL_METRICS[name].heading}"
            sections.append(Section(title, text=text, figures=panels, folded=name in OTHERS))
    return sections


def _training_sections(groups: Sequence[Group], colours: dict[str, str]) -> list[Section]:
    """One section per prefix, one panel per key."""
    prefixes: dict[str, list[str]] = {prefix: [] for prefix in TRAINING}
    for key in _keys(groups, "train"):
        if f"train/{key}" not in NO_CURVE:
            prefixes.setdefault(key.rpartition("/")[0], []).append(key)
    sections = []
    for prefix, keys in prefixes.items():
        if not keys:
            continue
        style = TRAINING.get(prefix, Style(prefix))
        shown = sorted(keys, key=lambda key: -_movement(groups, key))[:MOST_PANELS] if len(keys) > MOST_PANELS else keys
        shown = [key for key in keys if key in shown]
        rest = [key.rpartition("/")[2] for key in keys if key not in shown]
        text = style.text
        if rest:
            text = f"{text} The {len(shown)} of {len(keys)} that move most; not shown: {', '.join(rest)}.".strip()
        panels = [
            _panel("train", key, NAMES.get(key, key.rpartition("/")[2]), groups, colours, style.logarithmic)
            for key in shown
        ]
        sections.append(Section(style.title, text=text, figures=panels, folded=style.folded))
    return sections


def _panel(
    kind: str, key: str, title: str, groups: Sequence[Group], colours: dict[str, str], logarithmic: bool = False
) -> Figure:
    lines = []
    for group in groups:
        colour = colours[group.label]
        curves = [run.curves[kind, key] for run in group.runs if (kind, key) in run.curves]
        alone = len(curves) == 1
        lines += [
            Line(curve.steps, curve.values, colour, width=1.5 if alone else 0.7, opacity=1.0 if alone else 0.45)
            for curve in curves
        ]
        if len(curves) > 1:
            lines += _mean_line(curves, colour)
    return Figure(line_plot(title, lines, logarithmic=logarithmic), f"{kind} {key} by step")


def _mean_line(curves: Sequence[Curve], colour: str) -> list[Line]:
    steps, mean, half = mean_curve(curves)
    return [Line(steps, mean, colour, width=2.0, low=mean - half, high=mean + half)] if len(steps) else []


def _keys(groups: Sequence[Group], kind: str) -> list[str]:
    """Keys of all runs, in the order of writing."""
    return list(dict.fromkeys(key for group in groups for run in group.runs for of, key in run.curves if of == kind))


def _defined(groups: Sequence[Group], kind: str, key: str) -> bool:
    """Return whether any run has a finite value of the scalar."""
    curves = [run.curves[kind, key] for group in groups for run in group.runs if (kind, key) in run.curves]
    return any(np.isfinite(curve.values).any() for curve in curves)


def _movement(groups: Sequence[Group], key: str) -> float:
    """Range of the curves of ``key``, relative to their size."""
    curves = [run.curves["train", key].values for group in groups for run in group.runs if ("train", key) in run.curves]
    finite = np.concatenate([values[np.isfinite(values)] for values in curves])
    return float(np.ptp(finite) / (np.abs(finite).mean() + 1e-30)) if len(finite) else 0.0


def _untitled(table: PageTable) -> PageTable:
    return _retitled(table, "")


def _retitled(table: PageTable, caption: str) -> PageTable:
    return PageTable(table.columns, table.rows, table.text_columns, caption)
