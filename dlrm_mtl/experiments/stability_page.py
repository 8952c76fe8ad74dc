"""What the learning rates did: tables in the terminal, and a page with curves."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_mtl.console import console
from dlrm_mtl.experiments.stability import SettingResult, best_of, factors, training_loss
from dlrm_mtl.experiments.summary import source_line
from dlrm_mtl.reports.groups import mean_and_interval
from dlrm_mtl.reports.page import Cell, Figure, Page, PageTable, Section, write_text
from dlrm_mtl.reports.plots import COLOURS, Line, line_plot
from dlrm_mtl.reports.terminal import rich_table

LAYERS = 8
"""Most layers in a plot of factors."""


def tables(results: Sequence[SettingResult], metric: str) -> list[PageTable]:
    """Diverged trainings, the metric, micro-divergences: a row for each optimizer, a column for each rate."""
    optimizers = list(dict.fromkeys(each.setting.optimizer for each in results))
    multiples = list(dict.fromkeys(each.setting.multiple for each in results))
    columns = ["optimizer", *(f"{multiple:g}x" for multiple in multiples)]
    place = {(each.setting.optimizer, each.setting.multiple): each for each in results}

    def rows(cell: Any) -> list[list[str | Cell]]:
        return [[name, *(cell(place[name, multiple]) for multiple in multiples)] for name in optimizers]

    def diverged(each: SettingResult) -> Cell:
        count = sum(each.diverged)
        return Cell(f"{count} of {len(each.diverged)}", strong=count > 0)

    def value(each: SettingResult) -> Cell:
        best = best_of(results, each.setting.optimizer, metric)
        text = "diverges" if all(each.diverged) else spread(_finite(each, "validation", metric))
        return Cell(text, strong=each is best)

    def micro(each: SettingResult) -> str:
        return f"{np.mean(each.micro):.1f}" if each.micro else "-"

    return [
        PageTable(columns, rows(diverged), caption="Trainings that diverged"),
        PageTable(
            columns, rows(value), caption=f"{metric} on the validation split; bold: the best rate without divergence"
        ),
        PageTable(columns, rows(micro), caption="Micro-divergences of a training, on average"),
    ]


def best_table(results: Sequence[SettingResult], metric: str) -> PageTable:
    """Every optimizer at its best rate, on the validation and the test split."""
    rows: list[list[str | Cell]] = []
    for name in dict.fromkeys(each.setting.optimizer for each in results):
        best = best_of(results, name, metric)
        if best is None:
            rows.append([name, "none", "-", "-"])
            continue
        cells = [spread(_finite(best, split, metric)) for split in ("validation", "test")]
        rows.append([name, f"{best.setting.multiple:g}x", *cells])
    columns = ["optimizer", "best rate", f"validation {metric}", f"test {metric}"]
    return PageTable(columns, rows, caption="Every optimizer at its best rate: mean and 95 % interval over seeds")


def show(
    results: Sequence[SettingResult], metric: str, config: Path, html: Path | None, figures: Path | None = None
) -> None:
    """Print the tables, and write the page and its plots if asked for.

    Args:
        results: what came out.
        metric: metric that chooses.
        config: configuration that was trained.
        html: file of the page.
        figures: folder for the plots as single SVG files.

    Raises:
        UserError: a file cannot be written.
    """
    out = console()
    for table in [*tables(results, metric), best_table(results, metric)]:
        out.print(rich_table(table))
    if html is not None:
        page(results, metric, config).write(html)
        out.print(f"{html}: written; open it in a browser")
    if figures is not None:
        for section in page(results, metric, config).sections:
            for figure in section.figures:
                write_text(figures / f"{_file_name(figure.description)}.svg", figure.svg)


def _file_name(description: str) -> str:
    """``clipping factors at clippy@8x of a, b`` -> ``clipping_factors_at_clippy_8x``."""
    return re.sub(r"\W+", "_", description.partition(" of ")[0]).strip("_").lower()


def page(results: Sequence[SettingResult], metric: str, config: Path) -> Page:
    """Tables, the metric by rate, losses at every rate, and Clippy's factors."""
    optimizers = list(dict.fromkeys(each.setting.optimizer for each in results))
    multiples = list(dict.fromkeys(each.setting.multiple for each in results))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(optimizers)}
    sections = [
        Section(
            "By learning rate",
            "A training has diverged if it ends no better than constant predictions on the validation split, or without a "
            "finite loss. A micro-divergence is a rise of the training loss to 1.5 times its level that goes back.",
            [*tables(results, metric), best_table(results, metric)],
            [_by_rate(results, metric, colours)] if len(multiples) > 1 else [],
        ),
        Section("Training loss", "One line for each seed.", figures=_losses(results, multiples, colours)),
    ]
    clipped = [
        each
        for each in results
        if each.runs and any(((c.values > 0) & (c.values < 1)).any() for c in factors(each.runs[0]).values())
    ]
    if clipped:
        sections.append(
            Section(
                "Clipping factors",
                "Factor of a layer or table in each step, 1 where nothing is clipped; first seed, the most clipped ones.",
                figures=[_factors(each) for each in clipped],
            )
        )
    legend = [(colours[name], name) for name in optimizers]
    seeds = max((len(each.outcomes) for each in results), default=0)
    return Page("Stability by learning rate", f"{config}, {seeds} seeds; {source_line()}", legend, sections)


def as_json(results: Sequence[SettingResult], metric: str) -> dict[str, Any]:
    """All figures."""
    optimizers = dict.fromkeys(each.setting.optimizer for each in results)
    best = {name: found for name in optimizers if (found := best_of(results, name, metric)) is not None}
    return {
        "metric": metric,
        "source": source_line(),
        "settings": [
            {
                "optimizer": each.setting.optimizer,
                "multiple": each.setting.multiple,
                "diverged": sum(each.diverged),
                "trainings": len(each.diverged),
                "micro_divergences": each.micro,
                "validation": [_number(value) for value in each.values("validation", metric)],
                "test": [_number(value) for value in each.values("test", metric)],
                "last_loss": [_number(_last(training_loss(run))) for run in each.runs],
            }
            for each in results
        ],
        "best_rate": {name: found.setting.multiple for name, found in best.items()},
    }


def _by_rate(results: Sequence[SettingResult], metric: str, colours: dict[str, str]) -> Figure:
    lines = []
    for name, colour in colours.items():
        own = [each for each in results if each.setting.optimizer == name]
        own.sort(key=lambda each: each.setting.multiple)
        means, halves = [], []
        for each in own:
            mean, half = mean_and_interval([] if all(each.diverged) else _finite(each, "validation", metric))
            means.append(mean)
            halves.append(half if math.isfinite(half) else 0.0)
        x, y, h = np.array([each.setting.multiple for each in own]), np.array(means), np.array(halves)
        lines.append(Line(x, y, colour, low=y - h, high=y + h))
    title = f"validation {metric} by learning rate"
    return Figure(line_plot(title, lines, "multiple of the base rates", logarithmic_x=True), title, wide=True)


def _losses(results: Sequence[SettingResult], multiples: Sequence[float], colours: dict[str, str]) -> list[Figure]:
    figures = []
    for multiple in multiples:
        lines = []
        for each in results:
            if each.setting.multiple != multiple:
                continue
            for run in each.runs:
                losses = training_loss(run)
                steps = next((c.steps for (kind, key), c in run.curves.items() if key.startswith("loss/")), np.empty(0))
                lines.append(
                    Line(steps[: len(losses)], losses, colours[each.setting.optimizer], width=1.0, opacity=0.7)
                )
        title = f"training loss at {multiple:g}x"
        figures.append(Figure(line_plot(title, lines, logarithmic=True), title))
    return figures


def _factors(each: SettingResult) -> Figure:
    found = list(factors(each.runs[0]).items())[:LAYERS]
    lines = [Line(c.steps, c.values, COLOURS[n % len(COLOURS)]) for n, (_, c) in enumerate(found)]
    title = f"{each.setting.name}: " + ", ".join(name for name, _ in found[:2])
    names = ", ".join(name for name, _ in found)
    return Figure(line_plot(title, lines, logarithmic=True), f"clipping factors at {each.setting.name} of {names}")


def spread(values: Sequence[float]) -> str:
    """Mean and 95 % interval, as text."""
    mean, half = mean_and_interval(values)
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.4f}" + (f" ± {half:.4f}" if math.isfinite(half) else "")


def _finite(each: SettingResult, split: str, metric: str) -> list[float]:
    """Values of the trainings that did not diverge."""
    values = zip(each.values(split, metric), each.diverged, strict=True)
    return [value for value, diverged in values if math.isfinite(value) and not diverged]


def _last(losses: Any) -> float:
    return float(losses[-1]) if len(losses) else math.nan


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
