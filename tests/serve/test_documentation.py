"""docs/serving.md does what it says: its commands and its blocks of Python, in their order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_on_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str]]
) -> None:
    for name in ("configs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "serving.md").read_text()
    names: dict[str, Any] = {}
    for command, block in re.findall(r"^    dlrm-mtl ([^\n]*)$|^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if block:
            exec(block, names)
        else:
            code, printed = call(*shlex.split(command))
            assert code == 0, printed
    assert (tmp_path / "scores.parquet").is_file()
    assert names["scorer"].golden_difference <= 1e-6
