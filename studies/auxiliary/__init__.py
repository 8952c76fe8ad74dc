"""When does an auxiliary task help a rare target, and what does MetaBalance add?

Two synthetic data sets of known relatedness: the target has 2 % positives, the auxiliary 30 %, and their true logits have a
correlation of 0.9 or of 0. Each method is trained as it is and with the auxiliary's loss 30 times as large, so that its
gradients dominate. With `--data FOLDER`, views, carts and favourites are auxiliaries of purchases in two hours of Taobao's log.

Every method has a learning rate of its own, out of three, by the target's AUC on validation rows. The best one is trained on
five further seeds, and only these are shown, on test rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_mtl.console import say
from dlrm_mtl.prepare.synthetic.adapter import prepare as prepare_synthetic
from dlrm_mtl.prepare.userbehavior.adapter import prepare as prepare_userbehavior
from dlrm_mtl.reports.page import PageTable
from dlrm_mtl.reports.plots import COLOURS
from studies.comparison import compare, difference, differences_table, logged_table, means_table
from studies.frame import Shown, Study, Training, prepared, run
from studies.plots import drawing

CORRELATIONS = {"related": 0.9, "unrelated": 0.0}
TITLES = {
    "related": "Related auxiliary (correlation 0.9)",
    "unrelated": "Unrelated auxiliary (correlation 0)",
    "views": "Purchases on Taobao, two hours",
}
TARGET = {"related": "task_0", "unrelated": "task_0", "views": "buy"}
GRADIENTS = {
    "related": {"auxiliary": "task_1"},
    "unrelated": {"auxiliary": "task_1"},
    "views": {"views": "pv", "carts": "cart", "favourites": "fav"},
}
"""Auxiliary tasks by their names in the tables."""
BASELINES = {"related": "sum", "unrelated": "sum", "views": "with all three"}


class Auxiliary(Study):
    """The study's sweeps."""

    name = "auxiliary"
    sweeps = ("related.yaml", "unrelated.yaml", "views.yaml")
    raw = "Taobao's UserBehavior.csv, or a part of it; without it, only synthetic data are used"

    def prepare(self, raw: Path | None, output: Path) -> Mapping[str, Mapping[str, Any]]:
        """Make the synthetic data sets, and prepare the log if there is one."""
        for name, correlation in CORRELATIONS.items():
            if not prepared(output / "data" / name):
                prepare_synthetic(
                    output / "data" / name,
                    rows=200_000,
                    tables=6,
                    vocab="30..300",
                    tasks=2,
                    correlation=correlation,
                    positive_rate="0.02,0.3",
                    splits="train=0.2,validation=0.2,test=0.6",
                    processes=1,
                )
        log = output / "data" / "views"
        if raw is not None and not prepared(log):
            prepare_userbehavior(raw, log, evaluation_negatives=20)
        names = [*CORRELATIONS, *(["views"] if prepared(log) else [])]
        if "views" not in names:
            say("without --data, purchases on Taobao are left out")
        return {name: {"data.path": str(output / "data" / name)} for name in names}

    def measure(self, trainings: Mapping[str, Sequence[Training]], output: Path) -> dict[str, Any]:
        """Test AUC of the target and figures of the gradients, by method and seed."""
        found = {}
        for name, each in trainings.items():
            target = TARGET[name]
            scalars = [f"balancing/norm/{target}"]
            for task in GRADIENTS[name].values():
                scalars += [
                    f"balancing/cosine/{target}~{task}",
                    f"balancing/norm/{task}",
                    f"balancing/coefficient/{task}",
                ]
            found[name] = {"methods": compare(each, [f"{target}/auc"], scalars), **_facts(output / "data" / name)}
        return {"sweeps": found}

    def show(self, figures: Mapping[str, Any]) -> Shown:
        """Tables of each sweep, and a plot of the differences."""
        tables: list[PageTable] = []
        for name, found in figures["sweeps"].items():
            methods, key = found["methods"], f"{TARGET[name]}/auc"
            rates = {method: f"{own['point']['optimizer.dense.learning_rate']:g}" for method, own in methods.items()}
            best = f"; true logits {found['best']:.4f}" if found.get("best") else ""
            tables += [
                means_table(
                    methods, [key], f"{TITLES[name]}, test rows, mean and 95 % interval{best}", {"rate": rates}
                ),
                differences_table(
                    methods, BASELINES[name], [key], f"{TITLES[name]}, difference to {BASELINES[name]}, seed by seed"
                ),
            ]
            columns = {"norm of the target": f"balancing/norm/{TARGET[name]}"}
            for title, task in GRADIENTS[name].items():
                columns |= {
                    f"norm of {title}": f"balancing/norm/{task}",
                    f"cosine of {title}": f"balancing/cosine/{TARGET[name]}~{task}",
                    f"coefficient of {title}": f"balancing/coefficient/{task}",
                }
            tables.append(
                logged_table(methods, columns, f"{TITLES[name]}, gradients of shared parameters, means of all steps")
            )
        return Shown(tables, {"auxiliary": _plot(figures["sweeps"])})


def _facts(data: Path) -> dict[str, Any]:
    """AUC of the true logits of the target, and rows of each split."""
    truth = data / "truth.json"
    if not truth.is_file():
        return {}
    return {"best": json.loads(truth.read_text(encoding="utf-8"))["bayes"]["tasks"]["task_0"]["auc"]}


def _plot(sweeps: Mapping[str, Any]) -> str:
    with drawing(9.4, 3.2) as (figure, svg):
        panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
        for axes, (name, found) in zip(panels, sweeps.items(), strict=True):
            names = [method for method in found["methods"] if method != BASELINES[name]]
            for place, method in enumerate(names):
                mean, half = difference(found["methods"], method, BASELINES[name], f"{TARGET[name]}/auc")
                axes.errorbar(mean, place, xerr=half, fmt="o", color=COLOURS[0], markersize=4)
            axes.set_yticks(range(len(names)), names)
            axes.invert_yaxis()
            axes.axvline(0, color="#8c959f", linewidth=1)
            axes.grid(visible=False, axis="y")
            axes.set_title(TITLES[name])
            axes.set_xlabel(f"test AUC minus that of {BASELINES[name]}")
        return svg()


def main(arguments: Sequence[str]) -> None:
    """Run the study."""
    run(Auxiliary(Path(__file__).parent), arguments, __doc__ or "")
