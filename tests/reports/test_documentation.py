"""The example and the figures of docs/reports.md."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.reports.folders import write_run


def test_example(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    text = (repository / "docs" / "reports.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert "'video_id': 6153" in capsys.readouterr().out
    runs = [write_run(tmp_path / f"a{seed}", seed=seed, auc=auc) for seed, auc in ((1, 0.72), (2, 0.74))]
    names["seeds"](runs, "click/auc")  # type: ignore[operator]
    assert capsys.readouterr().out == "a1 and a2: 0.7100 ± 0.1271\n"  # 12.706 * 0.01


def test_figures(repository: Path) -> None:
    for name in ("compare", "describe"):
        ElementTree.parse(repository / "docs" / "figures" / "reports" / f"{name}.svg")
