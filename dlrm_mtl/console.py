"""Console output of a run: a live bar in a terminal, otherwise a line every few seconds (logs, torchx)."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from dlrm_mtl.metrics import METRICS, in_order

if TYPE_CHECKING:
    from dlrm_mtl.tasks.config import TaskConfig  # it needs PyTorch

PLAN_ROWS = 8
"""Number of tables that the plan shows separately."""

LINE_SECONDS = 5.0
"""Seconds between lines without a terminal."""

LIVE = bool(os.environ.get("DLRM_MTL_LIVE"))
"""Set by the launcher if the output reaches a terminal indirectly: a line can then be overwritten."""

LIVE_SECONDS = 0.5
"""Seconds between overwritten lines."""


def is_terminal() -> bool:
    """Whether a user sees the output in a terminal.

    With ``srun --unbuffered``, which torchx sets, a Slurm job writes to a pseudo-terminal, but its output goes to a file.
    """
    unbuffered = "SLURM_STEP_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ
    return sys.stdout.isatty() and not unbuffered


def console() -> Console:
    """The console for all output; without a terminal it is wide enough for every table.

    Brackets and colons in texts are shown literally: names of tasks and features are data, not markup.
    """
    terminal = is_terminal()
    return Console(
        width=None if terminal else 140,
        force_terminal=terminal,
        highlight=False,
        soft_wrap=not terminal,
        markup=False,
        emoji=False,
    )


_bars: list[Bar] = []
"""Visible bars, the outermost one first."""


def say(text: str) -> None:
    """Print a line, above the progress bar if there is one."""
    if _bars:
        _bars[0].say(text)
    else:
        print(text, flush=True)


class Bar:
    """A progress bar over ``total`` units of work; silent unless ``shown``.

    Args:
        label: name of the work.
        total: units of work.
        shown: True if this process shows it.
        done: units that a resumed run has finished before.
        brief: True to show it only if it takes long.
    """

    def __init__(self, label: str, total: int, shown: bool, done: int = 0, brief: bool = False) -> None:
        self.label, self.total, self.shown, self.brief = label, total, shown, brief
        self._done = self._first = done
        self._start = time.monotonic()
        self._next = self._start + (LINE_SECONDS if brief else 0.0)
        self._live: Progress | None = None
        self._width = 0
        if shown and is_terminal():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(20),
                TextColumn("{task.fields[text]}", markup=False),
            )
            self._live = Progress(*columns, console=console(), transient=brief)
            self._task = self._live.add_task(label, total=total, completed=done, text="")
            if not brief:
                self._live.start()

    def update(self, done: int, text: str = "") -> None:
        """Show that ``done`` units are done; ``text`` follows the count and the time left."""
        self._done = done
        finished = done == self.total and not self.brief
        if self._live:
            self._live.update(self._task, completed=done, text=self._state(text))
        elif self.shown and (time.monotonic() >= self._next or finished):
            self._next = time.monotonic() + (LIVE_SECONDS if LIVE else LINE_SECONDS)
            filled = round(20 * done / max(self.total, 1))
            line = f"{self.label} [{'#' * filled}{'.' * (20 - filled)}] {self._state(text)}"
            self._print(line, end="" if LIVE else "\n")
            self._width = len(line) if LIVE else 0

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._live:
            self._live.console.print(text)
        else:
            self._print(text, end="\n")
            self._width = 0

    def _print(self, line: str, end: str) -> None:
        start = "\r" if self._width else ""
        print(start + line.ljust(self._width), end=end, flush=True)

    def _state(self, text: str) -> str:
        fraction = self._done / max(self.total, 1)
        work, spent = self._done - self._first, time.monotonic() - self._start
        left = clock(spent / work * (self.total - self._done)) if work else "?"
        return f"{fraction:4.0%}  {self._done}/{self.total}  {left} left  {text}"

    def __enter__(self) -> Bar:
        if self.shown:
            _bars.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self in _bars:
            _bars.remove(self)
        if self._live:
            self._live.stop()
        elif self._width:
            print(flush=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def metrics_table(title: str, metrics: dict[str, float], tasks: list[str]) -> Table:
    """A table of metrics with one row per task; `-` means that a metric is not defined for a task."""
    names = [key.partition("/")[2] for key in metrics if key.partition("/")[0] in tasks]
    columns = {name: metric for name, metric in in_order(names).items() if not metric.detail}
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for metric in columns.values():
        table.add_column(metric.heading, justify="right")
    for task in tasks:
        values = [metrics.get(f"{task}/{name}", math.nan) for name in columns]
        cells = [
            "-" if math.isnan(value) else metric.form.format(value)
            for value, metric in zip(values, columns.values(), strict=True)
        ]
        table.add_row(task, *cells)
    return table


def headlines(tasks: Sequence[TaskConfig], metrics: dict[str, float]) -> str:
    """The first metric of every task, in a line: "AUC click 0.7500  buy 0.8000; RMSE seconds 12.5000"."""
    parts = []
    for kind, of_kind in METRICS.items():
        name, metric = next(iter(of_kind.items()))
        own = [
            f"{task.name} {metric.form.format(metrics[f'{task.name}/{name}'])}" for task in tasks if task.kind == kind
        ]
        if own:
            parts.append(f"{metric.heading} {'  '.join(own)}")
    return "; ".join(parts)


def plan_table(plan: list[dict[str, Any]], rows: int | None = PLAN_ROWS) -> Table:
    """Table of the sharding plan: the largest tables separately, the others in one row; plan.json has all.

    Args:
        plan: result of `describe_plan`.
        rows: number of tables that are shown separately; None for all.
    """
    table = Table(title="Sharding plan; MiB of the process that holds most of a table", title_justify="left")
    for heading in ("table", "rows", "dim", "sharding", "shards", "ranks", "weights", "state"):
        table.add_column(heading, justify="left" if heading in ("table", "sharding", "ranks") else "right")
    ordered = sorted(plan, key=lambda entry: -entry["mib"])
    shown, rest = ordered[:rows], ordered[len(ordered[:rows]) :]
    for entry in shown:
        table.add_row(
            entry["table"],
            f"{entry['rows']:,}",
            str(entry["dim"]),
            entry["type"],
            str(len(entry["shards"]) or 1),
            entry["ranks"] if entry["ranks"] == "all" else ranks_text(entry["ranks"]),
            f"{max(entry['weights_mib']):,.2f}",
            f"{max(entry['state_mib']):,.2f}",
        )
    if rest:
        types = ", ".join(sorted({entry["type"] for entry in rest}))
        total, (weights, state) = sum(entry["rows"] for entry in rest), _fullest(held_by_process(rest))
        table.add_row(f"{len(rest)} smaller ones", f"{total:,}", "", types, "", "", f"{weights:,.2f}", f"{state:,.2f}")
    return table


def held_by_process(plan: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """MiB of all tables' weights and of their state, by process."""
    return [
        (sum(weights), sum(state))
        for weights, state in zip(
            zip(*(entry["weights_mib"] for entry in plan), strict=True),
            zip(*(entry["state_mib"] for entry in plan), strict=True),
            strict=True,
        )
    ]


def plan_summary(plan: list[dict[str, Any]]) -> str:
    """One line on the processes that hold most and least."""
    held = held_by_process(plan)
    sums = [sum(sizes) for sizes in held]
    most, least = sums.index(max(sums)), sums.index(min(sums))
    text = f"tables on process {most}: {held[most][0]:,.1f} MiB of weights and {held[most][1]:,.1f} MiB of state"
    if most != least:
        text += f", the most; on process {least}: {held[least][0]:,.1f} and {held[least][1]:,.1f}, the least"
    return text


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks in order, neighbours as ranges: `0-3, 6`."""
    ends = [rank for rank in ranks if rank + 1 not in ranks]
    starts = [rank for rank in ranks if rank - 1 not in ranks]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _fullest(held: list[tuple[float, float]]) -> tuple[float, float]:
    return max(held, key=sum)
