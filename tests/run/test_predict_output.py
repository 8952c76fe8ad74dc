"""The file that ``predict`` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["p.csv", "p.CSV", "p.jsonl", "p.csv.gz"])
def test_other_formats_are_refused(call: Callable[..., tuple[int, str]], tmp_path: Path, name: str) -> None:
    code, said = call("predict", tmp_path / "run", "--input", tmp_path / "x.parquet", "--output", tmp_path / name)
    assert code == 2
    assert f"{name}: predictions are written as Parquet" in said
    assert not (tmp_path / name).exists()
