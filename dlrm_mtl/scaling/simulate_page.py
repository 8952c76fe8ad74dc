"""The tables and the page of simulated steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.embeddings.torchrec.plan import MIB
from dlrm_mtl.embeddings.torchrec.sharders import SHARDING_TYPES
from dlrm_mtl.reports.page import Cell, Figure, Page, PageTable, Section
from dlrm_mtl.reports.plots import COLOURS, Line, line_plot, stacked_bars
from dlrm_mtl.scaling.hardware import Hardware
from dlrm_mtl.scaling.simulate_types import CONFIGURED, TypeResult
from dlrm_mtl.scaling.work import PHASES, Phase

COLOUR = dict(zip([*SHARDING_TYPES, CONFIGURED], COLOURS, strict=False))
"""Colour of each sharding type in plots and tables."""

BALANCED = ("rows", "updates", "bytes", "memory")
"""Quantities whose balance over the processes is shown."""

Series = dict[str, list[tuple[int, float]]]
"""For each sharding type, numbers of processes with a value each."""


def moved(result: TypeResult, *phases: Phase) -> float:
    """MiB that the busiest process sends or receives in these phases, whichever is more."""
    sent, received = (sum(each(phase) for phase in phases) for each in (result.sent, result.received))
    return max(sent, received) / MIB


def work_table(results: Sequence[TypeResult], caption: str) -> PageTable:
    """Bytes, memory and balance of a step by sharding type."""
    rows: list[list[str | Cell]] = []
    for result in results:
        name = result.sharding if result.fits else f"{result.sharding} (does not fit)"
        bytes_ = [f"{moved(result, phase):,.2f}" for phase in PHASES]
        balance = [f"{result.imbalance(quantity):.2f}" for quantity in BALANCED]
        rows.append([_named(name, result), *bytes_, f"{max(result.held) / MIB:,.1f}", *balance])
    columns = ["sharding", *(f"{phase} MiB" for phase in PHASES), "memory MiB", *BALANCED]
    return PageTable(columns, rows, caption=caption)


def time_table(results: Sequence[TypeResult], caption: str) -> PageTable:
    """Predicted time of a step by sharding type and part, in ms."""
    parts = _visible_parts(results)
    longest = max(result.time.total for result in results) or 1.0
    rows: list[list[str | Cell]] = []
    for result in results:
        milliseconds = [f"{1e3 * result.time.parts[part]:.2f}" for part in parts]
        total = Cell(f"{1e3 * result.time.total:.2f}", bar=result.time.total / longest)
        rows.append([_named(result.sharding, result), *milliseconds, total, f"{result.time.waiting:.0%}"])
    return PageTable(["sharding", *parts, "all", "waiting"], rows, caption=caption)


def _visible_parts(results: Sequence[TypeResult]) -> list[str]:
    """Parts of the step that take at least 5 us under any of the sharding types."""
    return [part for part in results[0].time.parts if any(result.time.parts[part] >= 5e-6 for result in results)]


def _named(name: str, result: TypeResult) -> Cell:
    return Cell(name, colour=COLOUR.get(result.sharding))


def simulation_page(
    config: RunConfig, hardware: Hardware, results: Sequence[TypeResult], left_out: Sequence[str]
) -> Page:
    """All simulations of a configuration on one page.

    Args:
        config: configuration of the run.
        hardware: what the processes run on.
        results: simulated steps, at least one.
        left_out: sentences about sharding types that could not be simulated.
    """
    layouts = {result.layout.world_size: result.layout for result in results}
    sections = [_growth(results)] if len(layouts) > 1 else []
    for world, layout in layouts.items():
        own = [result for result in results if result.layout.world_size == world]
        each = f"{config.data.training_rows / world:,.0f} rows on each"
        sections.append(
            Section(
                f"{world} process(es) on {layout.hosts} host(s)",
                "MiB that the busiest process sends or receives, whichever is more, and that the fullest one holds; then the "
                f"largest over the mean of all processes. {each}.",
                [work_table(own, "Work of a step"), time_table(own, "Predicted time of the step, ms")],
                [_parts(own)],
            )
        )
    kinds = dict.fromkeys(result.sharding for result in results)
    return Page(
        f"Simulated steps of {config.name}",
        f"A training step of {config.data.training_rows:,} rows, on hosts of {hardware.processes_per_host} processes by the "
        f"figures of {hardware.name}. Bytes and rows are counted; times are the cost model's, in which no parts overlap.",
        [(COLOUR[kind], kind) for kind in kinds],
        sections,
        notes=left_out,
    )


def _growth(results: Sequence[TypeResult]) -> Section:
    """Plots by the number of processes."""
    quantities = {
        "Predicted step, ms": lambda result: 1e3 * result.time.total,
        "Lengths and ids, MiB": lambda result: moved(result, "ids"),
        "Vectors and their gradients, MiB": lambda result: moved(result, "pooled", "gradients"),
        "Dense gradients, MiB": lambda result: moved(result, "dense"),
        "Memory of the fullest process, MiB": lambda result: max(result.held) / MIB,
        "Rows read, largest over mean": lambda result: result.imbalance("rows"),
        "Bytes, largest over mean": lambda result: result.imbalance("bytes"),
        "Part of the step spent waiting": lambda result: result.time.waiting,
    }
    figures = []
    for title, value in quantities.items():
        series: Series = {}
        for result in results:
            series.setdefault(result.sharding, []).append((result.layout.world_size, value(result)))
        figures.append(plot_by_processes(title, series, logarithmic="waiting" not in title))
    text = (
        "The global batch is the same on any number of processes: a line that falls as 1 / processes scales perfectly."
    )
    return Section("By the number of processes", text, figures=figures)


def plot_by_processes(title: str, series: Series, logarithmic: bool = True) -> Figure:
    """A line for each sharding type over the number of processes; values of 0 are left out of a ``logarithmic`` scale."""
    lines = []
    for name, points in series.items():
        own = [point for point in sorted(points) if point[1] > 0 or not logarithmic]
        if own:
            x, y = np.array(own, dtype=np.float64).T
            lines.append(Line(x, y, COLOUR[name]))
    worlds = sorted({world for points in series.values() for world, _ in points})
    svg = line_plot(title, lines, "processes", logarithmic=logarithmic, logarithmic_x=True, x_ticks=worlds)
    return Figure(svg, f"{title} by the number of processes, a line for each sharding type")


def _parts(results: Sequence[TypeResult]) -> Figure:
    """Parts of the predicted step of each sharding type, as bars."""
    parts = {part: [1e3 * result.time.parts[part] for result in results] for part in _visible_parts(results)}
    title = "Parts of the predicted step, ms"
    svg = stacked_bars(title, [result.sharding for result in results], parts)
    return Figure(svg, f"{title}, a bar for each sharding type", wide=True)
