"""The worked example of docs/data.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dlrm_mtl.core.schema import validate
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.spec import DatasetSpec, DenseStatistics


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "docs" / "data.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_worked_example(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(repository, "python"):
        exec(block, names)
    dataset = open_dataset("shop")
    assert dataset.split("train").rows == 6
    assert dataset.split("test").rows == 2
    assert dataset.spec.vocabulary_size("clicked_before") == 4
    price = dataset.spec.feature("price").statistics
    assert isinstance(price, DenseStatistics)
    assert price.nulls == 1


def test_dataset_file(repository: Path) -> None:
    (text,) = blocks(repository, "yaml")
    assert validate(DatasetSpec, yaml.safe_load(text), "docs/data.md").names("sequence") == ["last_items"]
