"""Every configuration of debug size trains, evaluates and leaves a model that can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests import commands

ROOT = Path(__file__).parents[1]


SLOW = {
    "kuairand_adatt_debug",
    "kuairand_cgc_debug",
    "kuairand_cross_stitch_debug",
    "kuairand_logistic_regression_debug",
    "kuairand_multi_level_mmoe_debug",
    "kuairand_ncf_debug",
    "kuairand_neumf_debug",
    "kuairand_omoe_debug",
    "kuairand_single_task_debug",
}
"""Models that others are near to, or whose runs other tests take steps of."""


def debug_configurations() -> list[ParameterSet]:
    paths = sorted((ROOT / "configs").glob("*_debug.yaml"))
    return [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in paths]


@pytest.mark.parametrize("config", debug_configurations())
def test_debug_configurations_train(config: Path, tmp_path: Path) -> None:
    done = commands.run("train", config, "--output", tmp_path / "run", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test"]["is_click/auc"] > 0.5


def test_every_full_configuration_has_one_of_debug_size() -> None:
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert {f"{name}_debug" for name in names if not name.endswith("_debug")} <= names
