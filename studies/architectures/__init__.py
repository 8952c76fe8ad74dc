"""Which multitask architecture is best with equally many parameters, on real tasks and on tasks of known relatedness?

All architectures have the same number of parameters, to about one per cent, and the same towers (`widths.py`). Each has a
learning rate of its own, out of three, by the mean AUC on validation rows; the best one is trained on five further seeds, and
only these are shown, on test rows. Data: KuaiRand-Pure with four tasks, and two synthetic data sets whose two tasks' true
logits have a correlation of 0 or of 0.9.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_mtl.prepare.synthetic.adapter import prepare as prepare_synthetic
from dlrm_mtl.reports.page import PageTable
from dlrm_mtl.reports.plots import COLOURS
from studies.comparison import compare, difference, differences_table, means_table
from studies.frame import Shown, Study, Training, prepared, run
from studies.plots import drawing

CORRELATIONS = {"correlation_0": 0.0, "correlation_09": 0.9}
TITLES = {
    "kuairand": "KuaiRand-Pure, four tasks",
    "correlation_0": "Synthetic, correlation 0",
    "correlation_09": "Synthetic, correlation 0.9",
}
TASKS = {
    "kuairand": ("is_click", "long_view", "is_like", "is_profile_enter"),
    "correlation_0": ("task_0", "task_1"),
    "correlation_09": ("task_0", "task_1"),
}
BASELINE = "shared_bottom"


class Architectures(Study):
    """The study's sweeps."""

    name = "architectures"
    sweeps = ("correlation_0.yaml", "correlation_09.yaml", "kuairand.yaml")

    def prepare(self, raw: Path | None, output: Path) -> Mapping[str, Mapping[str, Any]]:
        """Make the synthetic data sets."""
        for name, correlation in CORRELATIONS.items():
            if not prepared(output / "data" / name):
                prepare_synthetic(
                    output / "data" / name,
                    rows=200_000,
                    tables=6,
                    vocab="30..300",
                    tasks=2,
                    correlation=correlation,
                    splits="train=0.4,validation=0.1,test=0.5",
                    processes=1,
                )
        return {name: {"data.path": str(output / "data" / name)} for name in CORRELATIONS} | {"kuairand": {}}

    def measure(self, trainings: Mapping[str, Sequence[Training]], output: Path) -> dict[str, Any]:
        """Test AUC by method and seed, and that of the true logits."""
        found = {}
        for name, each in trainings.items():
            keys = ["mean/auc", *(f"{task}/auc" for task in TASKS[name])]
            found[name] = {"methods": compare(each, keys), "best": _best(output / "data" / name / "truth.json")}
        return {"sweeps": found}

    def show(self, figures: Mapping[str, Any]) -> Shown:
        """Tables of each data set, and a plot of the differences to a shared bottom."""
        tables: list[PageTable] = []
        for name, found in figures["sweeps"].items():
            methods = found["methods"]
            keys = ["mean/auc", *(f"{task}/auc" for task in TASKS[name])]
            rates = {method: f"{own['point']['optimizer.dense.learning_rate']:g}" for method, own in methods.items()}
            best = f"; true logits {found['best']:.4f}" if found["best"] else ""
            tables += [
                means_table(methods, keys, f"{TITLES[name]}: test AUC, mean and 95 % interval{best}", {"rate": rates}),
                differences_table(methods, BASELINE, keys, f"{TITLES[name]}: difference to {BASELINE}, seed by seed"),
            ]
        return Shown(tables, {"architectures": _plot(figures["sweeps"])})


def _best(truth: Path) -> float | None:
    """Mean over tasks of the AUC of the true logits."""
    if not truth.is_file():
        return None
    tasks = json.loads(truth.read_text(encoding="utf-8"))["bayes"]["tasks"]
    return statistics.fmean(task["auc"] for task in tasks.values())


def _plot(sweeps: Mapping[str, Any]) -> str:
    with drawing(9.4, 3.4) as (figure, svg):
        panels = figure.subplots(1, len(sweeps), squeeze=False, sharey=True)[0]
        names = [name for name in next(iter(sweeps.values()))["methods"] if name != BASELINE]
        for axes, (data, found) in zip(panels, sweeps.items(), strict=True):
            for place, name in enumerate(names):
                if name not in found["methods"]:
                    continue
                mean, half = difference(found["methods"], name, BASELINE, "mean/auc")
                error = half if math.isfinite(half) else None
                axes.errorbar(mean, place, xerr=error, fmt="o", color=COLOURS[0], markersize=4)
            axes.axvline(0, color="#8c959f", linewidth=1)
            axes.grid(visible=False, axis="y")
            axes.set_title(TITLES[data])
            axes.set_xlabel("mean AUC minus that of shared_bottom")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        return svg()


def main(arguments: Sequence[str]) -> None:
    """Run the study."""
    run(Architectures(Path(__file__).parent), arguments, __doc__ or "")
