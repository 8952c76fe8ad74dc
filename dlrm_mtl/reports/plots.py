"""Plots as SVG text, drawn with matplotlib's objects: no global figure, no window, reproducible bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from dlrm_mtl.reports.themes import INKS, SERIES

Floats = NDArray[np.float64]

COLOURS = tuple(SERIES)
"""Colours of series, which colour-blind readers can distinguish."""

MOST_POINTS = 400
"""Largest number of points of a line; a longer one is reduced to the means of this many bins."""

STYLE: Any = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INKS["edge"][0],
    "axes.grid": True,
    "text.parse_math": False,  # texts are not formulas, and setting formulas takes most of the time
    "grid.color": INKS["grid"][0],
    "grid.linewidth": 0.7,
    "xtick.color": INKS["soft"][0],
    "ytick.color": INKS["soft"][0],
    "svg.fonttype": "none",
    "svg.hashsalt": "dlrm_mtl",
}


@dataclass(frozen=True)
class Line:
    """A line through points, with an optional band."""

    x: Floats
    y: Floats  # nan for a gap
    colour: str
    width: float = 1.4
    opacity: float = 1.0
    low: Floats | None = None
    high: Floats | None = None


def line_plot(
    title: str,
    lines: Sequence[Line],
    x_label: str = "step",
    logarithmic: bool = False,
    logarithmic_x: bool = False,
    from_zero: bool = False,
    x_ticks: Sequence[float] = (),
) -> str:
    """Lines over a common axis; bands may exceed the plot, as intervals of few values are very wide.

    ``x_ticks`` are the labelled places of the axis, chosen by matplotlib by default.
    """

    def draw(axes: Axes) -> None:
        for line in lines:
            x, y = thin(line.x, line.y)
            marker = "o" if np.isfinite(y).sum() == 1 else None  # a single point makes no line
            axes.plot(x, y, color=line.colour, linewidth=line.width, alpha=line.opacity, marker=marker, markersize=4)
        if logarithmic and any((line.y[np.isfinite(line.y)] > 0).any() for line in lines):
            axes.set_yscale("log")
            _plain_logarithms(axes.yaxis)
        if logarithmic_x:
            axes.set_xscale("log")
            _plain_logarithms(axes.xaxis)
        if x_ticks:
            axes.set_xticks(x_ticks, [f"{place:g}" for place in x_ticks])
            axes.set_xticks([], minor=True)
        limits = axes.get_ylim()
        for line in lines:
            if line.low is not None and line.high is not None:
                (x, low), (_, high) = thin(line.x, line.low), thin(line.x, line.high)
                axes.fill_between(x, low, high, color=line.colour, alpha=0.18, linewidth=0)
        axes.set_ylim(0 if from_zero else limits[0], limits[1])
        axes.set_xlabel(x_label)

    return svg_of(title, draw)


def grouped_bars(title: str, names: Sequence[str], groups: Mapping[str, Sequence[float]], y_label: str = "") -> str:
    """Grouped vertical bars on a log scale: one colour for each of ``groups``, for each of ``names``; 0 and nan give a gap."""

    def draw(axes: Axes) -> None:
        width = 0.8 / max(len(groups), 1)
        for number, (group, values) in enumerate(groups.items()):
            places = np.arange(len(names)) + (number - (len(groups) - 1) / 2) * width
            axes.bar(places, values, width * 0.92, color=COLOURS[number % len(COLOURS)], label=group)
        axes.set_xticks(np.arange(len(names)), [short(name, 16) for name in names], rotation=30, ha="right")
        axes.set_yscale("log")
        _plain_logarithms(axes.yaxis)
        axes.grid(visible=False, axis="x")
        axes.set_axisbelow(True)
        axes.set_ylabel(y_label)
        axes.legend(frameon=False, ncols=len(groups), fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))

    return svg_of(title, draw, width=10.0, height=3.0)


def stacked_bars(title: str, names: Sequence[str], parts: Mapping[str, Sequence[float]], x_label: str = "") -> str:
    """A horizontal bar for each of ``names``, the first at the top, of the values of ``parts`` one after the other.

    The smallest parts are drawn as one where there are more than colours.
    """
    shown = dict(parts)
    if len(shown) > len(COLOURS):
        kept = sorted(shown, key=lambda part: -sum(shown[part]))[: len(COLOURS) - 1]
        rest = [sum(shown[part][n] for part in shown if part not in kept) for n in range(len(names))]
        shown = {part: shown[part] for part in shown if part in kept} | {"others": rest}

    def draw(axes: Axes) -> None:
        places, left = -np.arange(len(names)), np.zeros(len(names))
        for colour, (part, values) in zip(COLOURS, shown.items(), strict=False):
            axes.barh(places, values, 0.72, left=left, color=colour, label=part)
            left = left + np.array(values)
        axes.set_yticks(places, [short(name, 24) for name in names])
        axes.grid(visible=False, axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel(x_label)
        axes.legend(frameon=False, ncols=min(len(shown), 5), fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12))

    return svg_of(title, draw, width=10.0, height=1.5 + 0.24 * len(names))


def histogram_plot(title: str, edges: Floats, counts: Floats, x_label: str = "") -> str:
    """A histogram from counts [n] of bins between ``edges`` [n + 1]."""

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=COLOURS[0], alpha=0.85)
        axes.set_xlabel(x_label)
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)

    return svg_of(title, draw, height=1.7)


def thin(x: Floats, y: Floats, points: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """Means over at most ``points`` bins of neighbours, ignoring nan."""
    if len(x) <= points:
        return x, y
    bins = np.arange(len(x)) * points // len(x)
    finite = np.isfinite(y)
    counts = np.bincount(bins[finite], minlength=points)
    sums = np.bincount(bins[finite], weights=y[finite], minlength=points)
    means = np.divide(sums, counts, out=np.full(points, np.nan), where=counts > 0)
    return np.bincount(bins, weights=x, minlength=points) / np.bincount(bins, minlength=points), means


class _PlainLogarithms(LogFormatter):
    """Numbers such as 0.01 where :class:`LogFormatter` would write 1e-02."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _plain_logarithms(axis: Axis) -> None:
    """Label powers of ten, and the numbers in between only if there are few powers."""
    axis.set_major_formatter(_PlainLogarithms())
    axis.set_minor_formatter(_PlainLogarithms(labelOnlyBase=False))


def svg_of(title: str, draw: Callable[[Axes], None], width: float = 4.6, height: float = 2.7) -> str:
    """A plot of one pair of axes, which ``draw`` fills; sizes in inches."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(short(title, 52 if width < 6 else 120))
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def short(text: str, limit: int = 28) -> str:
    """The beginning of a long text."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
