"""Parts from a package outside the tree: docs/extending.md, word for word, in real processes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests import commands

DOCUMENT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.S | re.M)


def test_the_first_block_is_a_part_of_the_run() -> None:
    first, run = (yaml.safe_load(blocks("yaml")[at]) for at in (0, -1))
    assert first["plugins"] == run["plugins"]
    assert first["model"].items() <= run["model"].items()


def succeeds(*arguments: object, cwd: Path, processes: int = 1) -> str:
    done = commands.run(*arguments, processes=processes, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_parts_from_outside_prepare_train_evaluate_and_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_parts.py").write_text("\n\n".join(blocks("python")))
    config = tmp_path / "run.yaml"
    config.write_text(blocks("yaml")[-1])
    monkeypatch.setitem(commands.ENVIRONMENT, "PYTHONPATH", f"{tmp_path}:{commands.ENVIRONMENT.get('PYTHONPATH', '')}")

    assert "coins: ready" in succeeds("prepare", "--plugin", "my_parts", "coins", "--output", "coins", cwd=tmp_path)
    succeeds("train", config, "--output", "run", cwd=tmp_path, processes=2)
    results = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert results["head/accuracy"] > 0.55
    assert "accuracy" in succeeds("evaluate", "run", "--split", "validation", cwd=tmp_path)
    succeeds("predict", "run", "--input", "coins/test", "--output", "predicted.parquet", cwd=tmp_path)
    assert pq.read_table(tmp_path / "predicted.parquet").column_names == ["head", "win"]

    few = commands.run("config", "check", config, "--set", "model.multitask.experts=1", cwd=tmp_path)
    assert few.returncode == 2
    assert "model.multitask.experts: 1 is less than the number of tasks, 2; raise it." in few.stderr
    misspelt = commands.run("config", "check", config, "--set", "balancing=equal_norm", cwd=tmp_path)
    assert "did you mean 'equal_norms'?" in misspelt.stderr
