"""Comparisons of methods from finished trainings, the widths of equal budgets, and what the studies show of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dlrm_mtl.experiments.config import read_sweep
from dlrm_mtl.reports.page import Cell
from studies.architectures import Architectures, widths
from studies.auxiliary import GRADIENTS, TARGET, Auxiliary
from studies.comparison import compare, difference, differences_table, logged_table, means_table
from studies.frame import Training

STUDIES = Path(__file__).parents[2] / "studies"


class Recorded:
    """Results of a run."""

    def __init__(self, test: dict[str, float], logged: dict[str, list[float]]) -> None:
        self.test = test
        self.curves = {("train", key): type("Curve", (), {"values": np.array(v)})() for key, v in logged.items()}


def training(method: str, seed: int, test: dict[str, float], final: bool = True, **logged: list[float]) -> Training:
    run: Any = Recorded(test, logged)
    return Training(method, {"optimizer.dense.learning_rate": 0.01}, seed, final, run)


def test_methods_are_compared_seed_by_seed_with_students_intervals() -> None:
    values = {"one": [0.70, 0.71, 0.73], "two": [0.74, 0.75, 0.75]}
    trainings = [training(m, s, {"a/auc": values[m][s - 2]}, cosine=[0.1, 0.3]) for s in (2, 3, 4) for m in values]
    figures = compare([training("one", 1, {"a/auc": 0.1}, final=False), *trainings], ["a/auc"], ["cosine", "norm"])
    assert figures["one"]["seeds"] == [2, 3, 4], "tuning is left out"
    assert figures["one"]["logged"] == {"cosine": [0.2, 0.2, 0.2]}
    mean, half = difference(figures, "two", "one", "a/auc")
    low, high = stats.ttest_rel(values["two"], values["one"]).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert differences_table(figures, "one", ["a/auc"], "").rows == [
        ["two", Cell(f"{mean:+.4f} ± {half:.4f}", strong=mean > half)]
    ]
    assert means_table(figures, ["a/auc"], "", {"rate": {"one": "0.01"}}).rows[1][:2] == ["two", ""]
    assert logged_table(figures, {"cosine": "cosine", "norm": "norm"}, "").rows[0] == ["one", "0.2", ""]


def test_an_undefined_metric_is_left_out() -> None:
    figures = compare([training("one", s, {"a/auc": v}) for s, v in ((1, 0.5), (2, float("nan")))], ["a/auc"])
    assert figures["one"]["test"]["a/auc"] == [0.5, None]
    assert means_table(figures, ["a/auc"], "").rows == [["one", "0.5000"]]


@pytest.mark.parametrize("name", widths.SETTINGS)
def test_sweeps_have_equal_budgets(name: str) -> None:
    assert (STUDIES / f"architectures/{name}.yaml").read_text() == widths.sweep(name), "run the script again"
    sweep = read_sweep(STUDIES / f"architectures/{name}.yaml")
    budget = widths.SETTINGS[name].budget
    for method in sweep.methods.values():
        options = {k: v for k, v in method.set["model.multitask"].items() if k not in ("norm", "dropout")}
        assert widths.parameters(name, options) == pytest.approx(budget, rel=0.02)
    assert sweep.final_seeds == 5


def test_what_architectures_shows() -> None:
    study = Architectures(STUDIES / "architectures")
    keys = ["mean/auc", "task_0/auc", "task_1/auc"]
    rows = [
        training(method, seed, dict.fromkeys(keys, 0.7 + 0.01 * (method == "mmoe")))
        for seed in (2, 3)
        for method in ("shared_bottom", "mmoe")
    ]
    shown = study.show(study.measure({"correlation_0": rows}, Path("nowhere")))
    assert "| mmoe | **+0.0100 ± 0.0000** |" in shown.markdown()
    assert "mmoe" in shown.plots["architectures"]


def test_what_auxiliary_shows() -> None:
    study = Auxiliary(STUDIES / "auxiliary")
    found = {}
    for name, target in TARGET.items():
        sweep = read_sweep(study.folder / f"{name}.yaml")
        assert sweep.baseline in sweep.methods
        first = next(iter(GRADIENTS[name].values()))
        logged = {f"balancing/cosine/{target}~{first}": [0.25]}
        found[name] = [
            training(method, seed, {f"{target}/auc": 0.6 + number / 100}, **logged)
            for seed in (2, 3)
            for number, method in enumerate(sweep.methods)
        ]
    shown = study.show(study.measure(found, Path("nowhere")))
    text = shown.markdown()
    assert "| target alone | 0.01 | 0.6000 ± 0.0000 |" in text
    assert "| target alone | **-0.0100 ± 0.0000** |" in text
    assert "| sum |  |  | 0.25 |" in text
    assert shown.plots["auxiliary"].startswith("<svg")
