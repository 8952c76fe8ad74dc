"""docs/training.md: its Python says what there is, and a listener like the one it shows works."""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import dlrm_mtl
from tests import synthetic


def blocks(repository: Path) -> list[str]:
    text = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def events() -> dict[str, set[str]]:
    """By method of a listener, the attributes of its event."""
    from dlrm_mtl.training import events

    result = {}
    for name, method in inspect.getmembers(dlrm_mtl.Listener, inspect.isfunction):
        if name.startswith("on_"):
            kind = getattr(events, inspect.signature(method).parameters["event"].annotation)
            result[name] = {field.name for field in fields(kind)}
    return result


def test_run_in_python(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    first = ast.parse(blocks(repository)[0])
    used = {node.attr for node in ast.walk(first) if isinstance(node, ast.Attribute)}
    known = {*dlrm_mtl.__all__, *dir(dlrm_mtl.Run)}
    assert used <= known
    config = dlrm_mtl.load_config("configs/kuairand_mmoe.yaml", overrides=["training.micro_batches=4"])
    assert "is_click" in {task.name for task in config.tasks}


def test_listener_of_the_page(repository: Path) -> None:
    known = events()
    (listener,) = [node for node in ast.parse(blocks(repository)[1]).body if isinstance(node, ast.ClassDef)]
    methods = [node for node in listener.body if isinstance(node, ast.FunctionDef)]
    assert len(methods) == 4
    for method in methods:
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "event":
                assert node.attr in known[method.name], f"{method.name}: event.{node.attr}"


def test_table_of_methods(repository: Path) -> None:
    text = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`on_.*?) \|", text, re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(events())


class JsonLog(dlrm_mtl.Listener):
    """The listener of the page with a file in the place of MLflow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Any] = []

    def on_start(self, event: Any) -> None:
        self.lines.append({"seed": event.config.seed, "batch_size": event.config.data.batch_size})

    def on_log(self, event: Any) -> None:
        self.lines.append({f"train/{key}": value for key, value in event.values.items()} | {"step": event.step})

    def on_evaluation(self, event: Any) -> None:
        self.lines.append(
            {f"{event.split}/{key}": value for key, value in event.metrics.items()} | {"step": event.step}
        )

    def on_end(self, event: Any) -> None:
        self.lines.append({"end": "FAILED" if event.error else "FINISHED"})
        self.path.write_text(json.dumps(self.lines))


def test_a_listener_in_a_run(tmp_path: Path) -> None:
    data = synthetic.write_dataset(tmp_path / "data", rows=256)
    config = dlrm_mtl.RunConfig.model_validate(synthetic.config(data, training={"epochs": 1, "log_every": 2}))
    run = dlrm_mtl.train(config, tmp_path / "run", listeners=[JsonLog(tmp_path / "log.json")], progress=False)
    lines = json.loads((tmp_path / "log.json").read_text())
    assert lines[0] == {"seed": 3, "batch_size": 64}
    assert [line["step"] for line in lines if "train/loss/click" in line] == [2, 4]
    assert lines[-2]["test/click/auc"] == run.metrics["click/auc"]
    assert lines[-1] == {"end": "FINISHED"}
