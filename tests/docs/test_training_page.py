"""docs/training.md names every event of a run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import dlrm_mtl


def test_table_of_methods(repository: Path) -> None:
    text = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`on_.*?) \|", text, re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(
        name for name, _ in inspect.getmembers(dlrm_mtl.Listener, inspect.isfunction) if name.startswith("on_")
    )
