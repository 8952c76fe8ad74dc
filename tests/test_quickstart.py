"""The quickstart does what it says, and the pages made from the code have what they are for."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dlrm_mtl

ROOT = Path(__file__).parents[1]


def test_the_quickstart_runs(tmp_path: Path) -> None:
    for name in ("configs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    page = (ROOT / "docs" / "quickstart.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "'user_id'" in done.stdout
    assert "'is_click'" in done.stdout
    assert (tmp_path / "runs" / "quickstart" / "results.json").is_file()


def test_the_reference_names_everything() -> None:
    pytest.importorskip("mkdocs", reason="the site needs requirements/docs.txt: make docs installs it")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    api = hooks.api()
    assert all(f"## {name}\n" in api for name in dlrm_mtl.__all__)
    keys = hooks.configuration()
    for key in ("evaluate_every", "batch_size", "lambda_rel", "extends", "task_experts"):
        assert f"| `{key}` |" in keys


def test_the_picture_shows_the_floors_of_today() -> None:
    picture = (ROOT / "docs" / "figures" / "floors.svg").read_text()
    floors = re.findall(r'font-weight="bold">(\w+)<', picture)
    there = {
        path.stem for path in (ROOT / "dlrm_mtl").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert set(floors) == there - {"__init__"}
