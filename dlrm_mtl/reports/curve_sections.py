"""Curves by step, overlaid: one panel for each scalar that the runs wrote.

Panels come from the keys in metrics.jsonl: ``PREFIX/NAME`` is the panel NAME of the section PREFIX, so a new scalar needs
no change here. :data:`TRAINING` gives some prefixes a title, an order and an axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.reports.comparison_tables import HEADLINES
from dlrm_mtl.reports.groups import Group, mean_curve
from dlrm_mtl.reports.page import Figure, Section
from dlrm_mtl.reports.plots import Line, line_plot
from dlrm_mtl.reports.runs import Curve

MOST_PANELS = 12
"""Largest number of panels in a section; with more keys, the curves that move most are shown and the text names the others."""
MOST_NAMED = 30
"""Most keys that the text names."""
FEWEST_SEEDS = 3
"""Fewest seeds with a band for the interval: that of two is 13 times as wide as their difference."""
OTHERS = tuple(name for name in ALL_METRICS if name not in (*HEADLINES, "positives"))
"""Metrics in a folded section; the number of positives is a fact of the data."""
ELSEWHERE = ("seconds", "epoch")
"""Keys of other parts of the page; those of phases are, too."""


@dataclass(frozen=True)
class Style:
    """Style of the panels of one prefix."""

    title: str
    text: str = ""
    logarithmic: bool = False
    folded: bool = False
    without_constants: bool = False
    """True if the text tells what did not change, instead of a panel."""


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
    "factor": Style(
        "Clipping factors",
        "1: the update was applied as it was; less: it was made smaller.",
        logarithmic=True,
        without_constants=True,
    ),
    "": Style(
        "Speed and steps",
        "Waiting share: time that training waited for data. Clipped and skipped steps are counts so far.",
        without_constants=True,
    ),
    "largest_move": Style("Largest move of a table's weights", logarithmic=True, folded=True, without_constants=True),
}

NAMES = {
    "rows_per_second": "rows per second",
    "data_wait_share": "waiting share",
    "rate_factor": "learning-rate factor",
    "skipped_steps": "skipped steps",
    "clipped_steps": "clipped steps",
    "conflict_share": "share of conflicts",
    "combined_norm": "norm of the combined gradient",
}


def validation_sections(groups: Sequence[Group], colours: Mapping[str, str]) -> list[Section]:
    """Metrics on the validation split by step: the headlines, and the others, folded."""
    keys = _keys(groups, "validation")
    sections = []
    for names, title in ((HEADLINES, "Validation curves"), (OTHERS, "Validation curves: other metrics")):
        own = [key for name in names for key in keys if key.rpartition("/")[2] == name]
        defined = [key for key in own if _defined(groups, key)]
        if not own:
            continue
        shown, text = _chosen(groups, "validation", defined)
        empty = [_metric_title(key) for key in own if key not in defined]
        if empty:
            text = f"{text} Undefined everywhere: {_listed(empty)}.".strip()
        panels = [_panel("validation", key, _metric_title(key), groups, colours) for key in shown]
        sections.append(Section(title, text=text, figures=panels, folded=names is OTHERS))
    return sections


def training_sections(groups: Sequence[Group], colours: Mapping[str, str]) -> list[Section]:
    """One section per prefix, one panel per key."""
    prefixes: dict[str, list[str]] = {prefix: [] for prefix in TRAINING}
    for key in _keys(groups, "train"):
        if key not in ELSEWHERE and not key.startswith("phase/"):
            prefixes.setdefault(key.rpartition("/")[0], []).append(key)
    sections = []
    for prefix, keys in prefixes.items():
        if not keys:
            continue
        style = TRAINING.get(prefix, Style(prefix))
        constant = {key: value for key in keys if (value := _constant(groups, key)) is not None}
        still = constant if style.without_constants else {}
        shown, text = _chosen(groups, "train", [key for key in keys if key not in still])
        if still:
            told = [f"{_short_name(key)} {value:g}" for key, value in still.items()]
            text = f"{text} The same in every entry of all runs: {_listed(told)}.".strip()
        panels = []
        for key in shown:
            panels.append(_panel("train", key, _short_name(key), groups, colours, style.logarithmic))
        text = f"{style.text} {text}".strip()
        sections.append(Section(style.title, text=text, figures=panels, folded=style.folded))
    return sections


def _chosen(groups: Sequence[Group], kind: str, keys: Sequence[str]) -> tuple[list[str], str]:
    """At most :data:`MOST_PANELS` keys, and a text about the others."""
    if len(keys) <= MOST_PANELS:
        return list(keys), ""
    most = sorted(keys, key=lambda key: -_movement(groups, kind, key))[:MOST_PANELS]
    rest = [_metric_title(key) if kind == "validation" else _short_name(key) for key in keys if key not in most]
    text = f"The {MOST_PANELS} of {len(keys)} that move most; not shown: {_listed(rest)}."
    return [key for key in keys if key in most], text


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _short_name(key: str) -> str:
    """Last part of the key of a scalar, for readers."""
    name = key.rpartition("/")[2]
    return NAMES.get(name, name)


def _metric_title(key: str) -> str:
    """``TASK/METRIC`` for readers."""
    task, _, name = key.rpartition("/")
    return f"{task}: {ALL_METRICS[name].heading}"


def _panel(
    kind: str, key: str, title: str, groups: Sequence[Group], colours: Mapping[str, str], logarithmic: bool = False
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
    if not len(steps):
        return []
    band = (mean - half, mean + half) if len(curves) >= FEWEST_SEEDS else (None, None)
    return [Line(steps, mean, colour, width=2.0, low=band[0], high=band[1])]


def _keys(groups: Sequence[Group], kind: str) -> list[str]:
    """Keys of all runs, in the order of writing."""
    return list(dict.fromkeys(key for group in groups for run in group.runs for of, key in run.curves if of == kind))


def _curves(groups: Sequence[Group], kind: str, key: str) -> list[Curve]:
    return [run.curves[kind, key] for group in groups for run in group.runs if (kind, key) in run.curves]


def _defined(groups: Sequence[Group], key: str) -> bool:
    """Return whether any run has a finite value of a metric on the validation split."""
    return any(np.isfinite(curve.values).any() for curve in _curves(groups, "validation", key))


def _constant(groups: Sequence[Group], key: str) -> float | None:
    """The only value of a scalar of training in several entries of each run; None if it changes."""
    curves = _curves(groups, "train", key)
    found = {value for curve in curves for value in curve.values.tolist()}
    return found.pop() if len(found) == 1 and all(len(curve.values) > 1 for curve in curves) else None


def _movement(groups: Sequence[Group], kind: str, key: str) -> float:
    """Range of the curves of ``key``, relative to their size."""
    finite = np.concatenate([curve.values[np.isfinite(curve.values)] for curve in _curves(groups, kind, key)])
    return float(np.ptp(finite) / (np.abs(finite).mean() + 1e-30)) if len(finite) else 0.0
