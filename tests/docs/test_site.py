"""The pages and pictures that are made from the code have what they are for."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import dlrm_mtl

ROOT = Path(__file__).parents[2]


def test_the_reference_names_everything() -> None:
    pytest.importorskip("mkdocs", reason="the site needs requirements/docs.txt: make docs installs it")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    api = hooks.api()
    assert all(f"::: dlrm_mtl.{name}\n" in api for name in dlrm_mtl.__all__ if name != "__version__")
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


@pytest.mark.parametrize("name", ["compare", "describe"])
def test_the_figures_of_reports_are_drawings(name: str) -> None:
    ElementTree.parse(ROOT / "docs" / "figures" / "reports" / f"{name}.svg")
