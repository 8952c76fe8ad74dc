"""The examples of docs/negatives.md work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dlrm_mtl.data.config import DataConfig


def blocks(repository: Path, page: str, language: str) -> list[str]:
    text = (repository / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_in_ones_own_trainer(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(repository, "data.md", "python"):
        exec(block, names)
    capsys.readouterr()
    (block,) = blocks(repository, "negatives.md", "python")
    exec(block, {})
    assert capsys.readouterr().out.splitlines() == ["12 torch.Size([12, 2])"] * 2


def test_the_key(repository: Path) -> None:
    (text,) = blocks(repository, "negatives.md", "yaml")
    config = DataConfig.model_validate(yaml.safe_load(text)["data"])
    assert config.negatives is not None
    assert config.training_rows == 5 * config.batch_size
