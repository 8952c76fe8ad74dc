"""The configurations of the large data sets train on what the adapters make of a few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dlrm_mtl.config.load import load_config
from dlrm_mtl.prepare import ADAPTERS
from tests import commands
from tests.prepare.published import real_rows
from tests.prepare.test_aliccp import Published

ROOT = Path(__file__).parents[2]
REAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    # configuration -> (folder of real rows, adapter, options)
    "aliexpress_mmoe": ("aliexpress", "aliexpress", {}),
    "criteo_dlrm": ("criteo", "criteo", {"files": "criteo_kaggle*.txt"}),
    "ehcf_mmoe": ("taobao", "userbehavior", {"layout": "ehcf", "negatives": 4}),
    "userbehavior_mmoe": ("taobao", "userbehavior", {"negative_exponent": 0.75}),
}

CONFIGS = [ROOT / "configs" / "public" / f"{name}.yaml" for name in sorted([*REAL, "aliccp_mmoe"])]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_valid_and_name_their_command(config: Path) -> None:
    loaded = load_config(config, [])
    assert loaded.name == config.stem
    (command,) = [line for line in config.read_text().splitlines() if line.startswith("#   dlrm-mtl prepare ")]
    assert command.split()[3] in ADAPTERS
    assert command.split()[command.split().index("--output") + 1] == loaded.data.path


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configurations_train(config: Path, repository: Path, tmp_path: Path) -> None:
    if config.stem == "aliccp_mmoe":
        ADAPTERS["aliccp"].part(Published(rows=600).write(tmp_path / "raw"), tmp_path / "data")
    else:
        folder, adapter, options = REAL[config.stem]
        ADAPTERS[adapter].part(real_rows(repository, folder), tmp_path / "data", **options)
    small = {"data.path": tmp_path / "data", "data.batch_size": 16, "data.evaluation_batch_size": 4096}
    small |= {"training.max_steps": 20, "training.evaluate_every": 10}
    overrides = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    done = commands.run("train", config, "--output", tmp_path / "run", *overrides)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for task in load_config(config, []).tasks:
        assert f"{task.name}/auc" in results["test"]
