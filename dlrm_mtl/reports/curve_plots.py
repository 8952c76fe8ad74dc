"""Plots of scores in bins: ROC, precision-recall, and reliability with the counts of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dlrm_mtl.metrics.score_bins import ScoreBins
from dlrm_mtl.reports.plots import MOST_POINTS, STYLE, svg_of
from dlrm_mtl.reports.score_curves import precision_recall, prediction_counts, reliability, roc

Array = NDArray[np.float64]

HEIGHT = 3.5
COUNTS = 30
"""Number of intervals of predictions that are counted."""
WITH_INTERVALS = 3
"""Most runs in a plot with an interval at every point."""


@dataclass(frozen=True)
class ScoredRun:
    """Scores of a run on a task, and the colour of its lines."""

    bins: ScoreBins
    colour: str
    opacity: float = 1.0


def roc_plot(title: str, runs: Sequence[ScoredRun]) -> str:
    """True by false positive rate, with the diagonal of random scores."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=STYLE["axes.edgecolor"], linewidth=0.8, linestyle="--")
        for run in runs:
            _line(axes, run, *roc(run.bins))
        _unit(axes, "false positive rate", "true positive rate")

    return svg_of(title, draw, height=HEIGHT)


def precision_recall_plot(title: str, runs: Sequence[ScoredRun]) -> str:
    """Precision by recall, with the share of positives, which random scores have."""

    def draw(axes: Axes) -> None:
        for run in runs:
            rate = run.bins.observed.sum() / run.bins.weight.sum()
            axes.axhline(rate, color=STYLE["axes.edgecolor"], linewidth=0.8, linestyle="--")
            _line(axes, run, *precision_recall(run.bins))
        _unit(axes, "recall", "precision")
        axes.set_ylim(0, None)

    return svg_of(title, draw, height=HEIGHT)


def reliability_plot(title: str, runs: Sequence[ScoredRun]) -> str:
    """What was observed by mean prediction, with the diagonal of perfect calibration; outlines: rows by prediction."""
    curves = [reliability(run.bins) for run in runs]
    ends = np.concatenate([np.concatenate([curve.predicted, curve.observed]) for curve in curves])
    low, high = (0.0 if runs[0].bins.kind == "binary" else float(ends.min())), float(ends.max())
    margin = 0.04 * (high - low or 1.0)
    limits = (low - margin, high + margin)

    def draw(axes: Axes) -> None:
        axes.plot(limits, limits, color=STYLE["axes.edgecolor"], linewidth=0.8, linestyle="--")
        for run, curve in zip(runs, curves, strict=True):
            axes.plot(
                curve.predicted, curve.observed, color=run.colour, alpha=run.opacity, linewidth=1.2, marker="o", ms=3
            )
            if len(runs) <= WITH_INTERVALS and np.isfinite(curve.low).all():
                axes.vlines(curve.predicted, curve.low, curve.high, color=run.colour, alpha=run.opacity, linewidth=0.9)
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.set_xlabel("mean prediction")
        axes.set_ylabel("mean label")
        _counts(axes, runs, limits)

    return svg_of(title, draw, height=HEIGHT)


def _counts(axes: Axes, runs: Sequence[ScoredRun], limits: tuple[float, float]) -> None:
    """Outlines in the lower quarter of a plot, with an axis of their own."""
    edges = np.linspace(*limits, COUNTS + 1)
    counts = [prediction_counts(run.bins, edges) for run in runs]
    beside = axes.twinx()
    for run, heights in zip(runs, counts, strict=True):
        beside.stairs(heights, edges, color=run.colour, alpha=0.6 * run.opacity, linewidth=0.8, fill=len(runs) == 1)
    most = max(float(heights.max()) for heights in counts)
    beside.set_ylim(0, 4 * most)
    beside.set_yticks([0, most], ["0", f"{most:,.0f}\nrows"])
    beside.grid(visible=False)


def _line(axes: Axes, run: ScoredRun, x: Array, y: Array) -> None:
    """A line through some of the points, the first and the last among them."""
    places = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(np.int64))
    axes.plot(x[places], y[places], color=run.colour, alpha=run.opacity, linewidth=1.3)


def _unit(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
