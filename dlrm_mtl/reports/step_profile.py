"""``dlrm-mtl profile``: where the time of a training step goes, in the terminal and as a page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from dlrm_mtl.config.load import load_config
from dlrm_mtl.console import console
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.reports.page import Cell, Page, PageTable, Section
from dlrm_mtl.reports.phase_names import PHASES
from dlrm_mtl.reports.terminal import rich_table
from dlrm_mtl.run.measure import JobTimes, measure_steps
from dlrm_mtl.training.step_times import StepTimes

REST = "the rest"
OPERATORS = 12
"""Operators that are shown."""


def show_profile(
    path: Path,
    overrides: Sequence[str] | None,
    plugins: Sequence[str] | None,
    steps: int,
    output: Path | None,
    html: Path | None,
) -> None:
    """Measure training steps and print their phases; every process must call this.

    Args:
        path: YAML file of the configuration.
        overrides: ``key=value``.
        plugins: modules to import first.
        steps: number of steps to measure.
        output: folder for the trace of each process; None for none.
        html: file of a page; None for none.

    Raises:
        UserError: a mistake in the configuration or the data, or a file cannot be written.
    """
    config = load_config(path, list(overrides or []), list(plugins or []))
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, not a folder; name a folder with --output.")
    measured = measure_steps(config, steps, output)
    if not measured.is_main:
        return
    tables = [phase_table(measured), operator_table(measured.times[0])]
    out = console()
    for line in headlines(measured):
        out.print(line)
    for table in tables:
        out.print(rich_table(table))
    if output is not None:
        out.print(f"{output}: a trace of each process; open it in https://ui.perfetto.dev")
    if html is not None:
        page(measured, tables).write(html)
        out.print(f"{html}: written; open it in a browser")


def headlines(measured: JobTimes) -> list[str]:
    """What was measured: size, speed and memory, a sentence each."""
    config, times = measured.config, measured.times
    steps = times[0].steps
    low, middle, high = quartiles(steps)
    rows = config.data.batch_size
    memory = f"largest memory of a process {max(own.memory for own in times) / 2**20:,.0f} MiB"
    device = max(own.device_memory for own in times)
    if device:
        memory += f", of a GPU {device / 2**20:,.0f} MiB"
    return [
        f"{config.name}: {len(steps)} steps of {rows:,} rows on {len(times)} process(es), {measured.device}, "
        f"{measured.threads} thread(s) each",
        f"{middle * 1000:.2f} ms for a step (interquartile range {low * 1000:.2f} to {high * 1000:.2f}), "
        f"{rows / middle:,.0f} rows/s; {memory}",
    ]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def phase_means(times: StepTimes) -> dict[str, float]:
    """Mean seconds of each phase in a step, with :data:`REST`; together they are the mean step."""
    count = len(times.steps)
    sums = dict.fromkeys(PHASES, 0.0)
    for step in times.phases:
        for name, seconds in step.items():
            if name in sums:
                sums[name] += seconds
    means = {name: total / count for name, total in sums.items() if total}
    means[REST] = max(sum(times.steps) / count - sum(means.values()), 0.0)
    return means


def phase_table(measured: JobTimes) -> PageTable:
    """Time of each phase on the first process, and the range over all of them."""
    means = [phase_means(times) for times in measured.times]
    first, several = means[0], len(means) > 1
    total = sum(first.values())
    rows: list[list[str | Cell]] = []
    for name, seconds in first.items():
        row: list[str | Cell] = [name, PHASES.get(name, "Python between the phases, and what belongs to none")]
        row += [f"{seconds * 1000:.3f}", Cell(f"{seconds / total:.1%}", bar=seconds / total)]
        if several:
            everywhere = [own.get(name, 0.0) * 1000 for own in means]
            row.append(f"{min(everywhere):.3f} to {max(everywhere):.3f}")
        rows.append(row)
    columns = ["phase", "what happens", "ms", "share", *(["ms on all processes"] if several else [])]
    return PageTable(columns, rows, text_columns=2, caption="Phases of a step, first process: means")


def operator_table(times: StepTimes) -> PageTable:
    """The costliest operators of the first process."""
    total = sum(operator.seconds for operator in times.operators) or 1.0
    rows: list[list[str | Cell]] = [
        [
            operator.name,
            f"{operator.calls:.1f}",
            f"{operator.seconds * 1000:.3f}",
            Cell(f"{operator.seconds / total:.1%}", bar=operator.seconds / total),
        ]
        for operator in times.operators[:OPERATORS]
    ]
    caption = "Operators by their own time in a step, first process, all threads, while traced"
    return PageTable(["operator", "calls", "ms", "share"], rows, caption=caption)


def page(measured: JobTimes, tables: Sequence[PageTable]) -> Page:
    """The profile as a page."""
    what, speed = headlines(measured)
    phases, operators = tables
    text = (
        "A phase within another one is not counted in the outer one. Waiting for other processes counts where it "
        "happens: in the exchanges and in the agreement."
    )
    sections = [Section("Phases", text, [phases]), Section("Operators", "", [operators])]
    return Page(f"Profile of {measured.config.name}", f"{what}. {speed}.", sections=sections)
