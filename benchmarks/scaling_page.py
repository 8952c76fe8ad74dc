"""The page of the scaling benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.scaling_cases import SHAPES, TYPES
from benchmarks.scaling_measured import cases_of
from dlrm_mtl.reports.page import Figure, Page, PageTable, Section
from dlrm_mtl.scaling.simulate_page import COLOUR, Series, plot_by_processes

QUANTITIES = {
    "vectors": ("vectors and gradients, MB", 1e-6),
    "ids": ("lengths and ids, MB", 1e-6),
    "seconds": ("predicted step, ms", 1e3),
    "rows_imbalance": ("rows read, largest / mean", 1.0),
}


def page(figures: dict[str, Any]) -> Page:
    """All figures on one self-contained page."""
    sections = []
    for mode, text in {
        "weak": "256 rows on every process: a flat line scales perfectly.",
        "strong": "8,192 rows on all processes together: a line that falls as 1 / processes scales perfectly.",
    }.items():
        own = [each for each in figures["simulated"] if each["mode"] == mode]
        plots = [
            _plot(f"{shape}: {label}", [each for each in own if each["shape"] == shape], key, scale)
            for shape in SHAPES
            for key, (label, scale) in QUANTITIES.items()
            if any(each["shape"] == shape for each in own)
        ]
        if plots:
            sections.append(Section(f"Simulated, {mode} scaling, {figures['hardware']}", text, figures=plots))
    for job in figures["measured"]:
        rows = [
            [
                case["shape"],
                case["sharding"],
                f"{1e3 * case['seconds']:.1f}",
                f"{1e3 * case['middle_half'][0]:.1f} to {1e3 * case['middle_half'][1]:.1f}",
                f"{case['sent'] / 1e6:.2f}",
                f"{case['received'] / 1e6:.2f}",
            ]
            for case in cases_of(job)
        ]
        columns = ["shape", "sharding", "ms a step", "middle half", "MB sent", "MB received"]
        title = f"Measured: {job['processes']} process(es) on {job['hosts']} host(s)"
        sections.append(Section(title, tables=[PageTable(columns, rows, text_columns=2)]))
    for key, title, columns in (
        (
            "laws",
            "Exponents: bytes and memory of a process grow as this power",
            ["grows", "sharding", "ids", "vectors", "held"],
        ),
        ("compared", "Measured / simulated", ["shape", "sharding", "processes", "sent", "received", "seconds"]),
    ):
        found = figures.get(key)
        if found:
            rows = [[_text(each[column]) for column in columns] for each in found]
            sections.append(Section(title, tables=[PageTable(columns, rows, text_columns=2)]))
    rows = [
        [each["shape"], each["sharding"], str(each["processes"])]
        + [_text(each[clock][key]) for clock in ("seconds", "processor") for key in ("measured", "predicted")]
        for each in figures["predictions"]
    ]
    if rows:
        columns = ["shape", "sharding", "processes", "measured", "predicted", "of the processor", "predicted"]
        sections.append(
            Section("Measured and predicted, seconds of a step", tables=[PageTable(columns, rows, text_columns=2)])
        )
    legend = [(COLOUR[name], name) for name in TYPES]
    return Page("Scaling by sharding type", "A training step of the tables of several shapes.", legend, sections)


def _plot(title: str, cases: Sequence[dict[str, Any]], key: str, scale: float) -> Figure:
    series: Series = {}
    for case in cases:
        series.setdefault(case["sharding"], []).append((case["processes"], scale * case[key]))
    return plot_by_processes(title, series)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
