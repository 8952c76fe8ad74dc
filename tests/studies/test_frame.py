"""The frame of studies: real trainings of a small study, going on, and what it says of mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.reports.page import Cell, PageTable
from studies.frame import Shown, Study, Training, markdown, run
from studies.plots import Band, curves

ROOT = Path(__file__).parents[2]


class Small(Study):
    name = "small"

    def measure(self, trainings: Mapping[str, Sequence[Training]], output: Path) -> dict[str, Any]:
        [(sweep, found)] = trainings.items()
        assert sweep == "sweep"
        return {"auc": {f"{one.method} {one.seed}": (one.run.validation or {})["mean/auc"] for one in found}}

    def show(self, figures: Mapping[str, Any]) -> Shown:
        rows = [[name, f"{value:.4f}"] for name, value in figures["auc"].items()]
        return Shown([PageTable(["run", "AUC"], rows)], {"small": "<svg></svg>"})


@pytest.fixture
def study(tmp_path: Path) -> Small:
    content = {
        "config": str(ROOT / "configs/kuairand_shared_bottom_debug.yaml"),
        "methods": {"one": {}, "two": {"set": {"optimizer.dense.learning_rate": 0.3}}},
        "seeds": 3,
    }
    (tmp_path / "study").mkdir()
    (tmp_path / "study/sweep.yaml").write_text(yaml.safe_dump(content))
    return Small(tmp_path / "study")


def test_a_study_trains_shows_and_goes_on(study: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no training is finished yet"):
        run(study, ["--quick", "--finished", "--output", str(tmp_path / "out")], "")
    given = ["--quick", "--output", str(tmp_path / "out"), "--json", str(tmp_path / "figures.json"), "--parallel", "1"]
    run(study, [*given, "--plots", str(tmp_path)], "")
    first = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["auc"]) == ["one 1", "two 1"], "one seed, methods in their order"
    assert figures["study"] == "small"
    assert f"| one 1 | {figures['auc']['one 1']:.4f} |" in first
    assert (tmp_path / "small.svg").read_text() == "<svg></svg>"

    # A training is lost: what is finished can be shown, and the same command trains only what is missing.
    ledger = tmp_path / "out/sweep/trials.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text(lines[0])
    run(study, ["--quick", "--finished", "--output", str(tmp_path / "out")], "")
    shown = capsys.readouterr().out
    assert "| one 1 |" in shown
    assert "| two 1 |" not in shown
    kept = (tmp_path / "out/sweep/trials/one-000-seed1/metrics.jsonl").stat().st_mtime_ns
    run(study, given, "")
    assert json.loads((tmp_path / "figures.json").read_text())["auc"] == figures["auc"]
    assert (tmp_path / "out/sweep/trials/one-000-seed1/metrics.jsonl").stat().st_mtime_ns == kept


def test_stored_figures_are_shown_without_training(study: Small, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"figures.json: there are no figures yet; run the study without --stored\."):
        run(study, ["--stored"], "")
    (study.folder / "figures.json").write_text(json.dumps({"auc": {"one 1": 0.75}}))
    run(study, ["--stored"], "")
    assert "| one 1 | 0.7500 |" in capsys.readouterr().out


def test_a_mistake_in_the_command_is_a_sentence(study: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--parallel 0: give 1 or more\."):
        run(study, ["--parallel", "0", "--output", str(tmp_path / "out")], "")


def test_markdown() -> None:
    table = PageTable(["name", "a", "b"], [["x", Cell("1", strong=True), "2"]], caption="Numbers")
    assert markdown(table) == "Numbers\n\n| name | a | b |\n| --- | ---: | ---: |\n| x | **1** | 2 |"


def test_curves_have_a_panel_and_a_name_for_each() -> None:
    lines = {"one": Band([1.0, 2.0], [0.1, 0.1]), "two": Band([2.0, 1.0], [None, None])}
    drawn = curves({"Loss": lines, "Error": lines, "Rank": lines}, "epoch", {"Loss": (0, 3)})
    assert drawn.startswith("<svg")
    assert all(text in drawn for text in ("Loss", "Error", "Rank", "one", "two", "epoch"))
