"""Plots of the studies, as SVG in the style of the package's pages."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dlrm_mtl.reports.plots import COLOURS, STYLE


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, Callable[[], str]]]:
    """An empty figure, in inches, and a function that returns it as SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)

        def svg() -> str:
            stream = io.StringIO()
            figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
            text = stream.getvalue()
            return text[text.index("<svg") :]

        yield figure, svg


@dataclass(frozen=True)
class Band:
    """A line with a band of ``half`` above and below it; None for no band."""

    y: Sequence[float]
    half: Sequence[float | None]


def curves(panels: Mapping[str, Mapping[str, Band]], x_label: str, limits: Mapping[str, Any] | None = None) -> str:
    """Panels side by side, two in a row, with the same lines in each, over 1, 2, ...

    Args:
        panels: by title, the lines by name.
        x_label: label of the horizontal axes.
        limits: range of the vertical axis by title.
    """
    rows = -(-len(panels) // 2)
    with drawing(8.6, 2.5 * rows + 0.3) as (figure, svg):
        grid = figure.subplots(rows, 2, squeeze=False).flatten().tolist()
        for axes, (title, lines) in zip(grid, panels.items(), strict=False):
            for number, (name, band) in enumerate(lines.items()):
                _line(axes, band, COLOURS[number], name)
            axes.set_title(title)
            axes.set_xlabel(x_label)
            if limits and title in limits:
                axes.set_ylim(*limits[title])
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        return svg()


def _line(axes: Axes, band: Band, colour: str, name: str) -> None:
    x = range(1, len(band.y) + 1)
    axes.plot(x, band.y, color=colour, linewidth=1.3, label=name)
    if all(half is not None for half in band.half):
        pairs = [(y, half or 0.0) for y, half in zip(band.y, band.half, strict=True)]
        axes.fill_between(x, [y - h for y, h in pairs], [y + h for y, h in pairs], color=colour, alpha=0.15, lw=0)
