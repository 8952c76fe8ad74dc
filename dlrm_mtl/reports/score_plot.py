"""Plot of a score's trade-off: what the order gains for one task, and loses for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.reports.plots import COLOURS, STYLE

Points = Sequence[Sequence[float]]
"""For each score, the metrics of the objective."""


@dataclass(frozen=True)
class TradeOff:
    """Scores as points with one number for each of M metrics."""

    axes: Sequence[str]
    """Names of the metrics."""
    tried: Points
    start: Sequence[float]
    best: Sequence[float]


def check_plot_name(output: str) -> None:
    """Refuse a file that cannot be written; raises :class:`UserError`."""
    if Path(output).suffix not in (".svg", ".png"):
        raise UserError(f"--plot {output}: plots are .svg or .png; name a file with one of these endings.")
    if Path(output).exists():
        raise UserError(f"--plot {output}: this file exists already; name another, or remove it.")
    if not Path(output).absolute().parent.is_dir():
        raise UserError(f"--plot {output}: there is no folder {Path(output).parent}; make it, or name another.")


def write_trade_off(found: TradeOff, output: str) -> None:
    """Draw the first metric beside each other one, as SVG or PNG by the ending of ``output``."""
    others = list(range(1, len(found.axes))) or [0]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(others), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for place, other in enumerate(others):
            axes = figure.add_subplot(1, len(others), place + 1)
            axes.scatter(
                [p[0] for p in found.tried],
                [p[other] for p in found.tried],
                s=9,
                color="#8c959f",
                alpha=0.6,
                label="tried",
            )
            line = _upper(sorted((point[0], point[other]) for point in found.tried))
            axes.step(
                [x for x, _ in line],
                [y for _, y in line],
                where="pre",
                color=COLOURS[0],
                linewidth=1.2,
                label="trade-off",
            )
            axes.scatter(
                found.start[0], found.start[other], s=46, marker="s", color=COLOURS[1], label="before", zorder=3
            )
            axes.scatter(found.best[0], found.best[other], s=80, marker="*", color=COLOURS[2], label="tuned", zorder=4)
            axes.set_axisbelow(True)
            axes.set_xlabel(found.axes[0])
            axes.set_ylabel(found.axes[other])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
        suffix = Path(output).suffix[1:]
        metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
        figure.savefig(output, format=suffix, dpi=150, metadata=metadata)


def _upper(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points in ascending order, those that have none to their right that are higher."""
    kept: list[tuple[float, float]] = []
    for x, y in reversed(points):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept[::-1]
