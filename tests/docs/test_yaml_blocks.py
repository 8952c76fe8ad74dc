"""Every YAML block of the documents is a data set, a description of a table, a sweep, a configuration, or a part of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter

from dlrm_mtl.config.load import know_all_parts, load_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.schema import validate
from dlrm_mtl.core.yaml_text import to_yaml
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.experiments.config import SweepConfig
from dlrm_mtl.experiments.sweep import corners
from dlrm_mtl.prepare.table.description import TableDescription
from tests.docs.pages import NAMES, Piece, blocks
from tests.launchers.schemas import check_manifest

ELSEWHERE = {"docs/extending.md": "tests/test_plugins.py trains with it"}
BLOCKS = [block for page in NAMES if page not in ELSEWHERE for block in blocks(page, "yaml")]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_it_validates(block: Piece, tmp_path: Path) -> None:
    try:
        check(yaml.safe_load(block.text), block, tmp_path)
    except Exception as error:
        raise AssertionError(f"{block.place}: {error}") from None


def check(content: dict[str, Any], block: Piece, folder: Path) -> None:
    if "apiVersion" in content:
        check_manifest(content)
    elif "features" in content and "splits" in content and "folder" in str(content["splits"]):
        validate(DatasetSpec, content, block.page)
    elif "unbounded: true" in block.text:
        validate(
            DatasetSpec,
            {"name": "x", "splits": {"train": {"folder": "x"}}, "labels": [{"name": "y"}], **content},
            block.page,
        )
    elif "features" in content:
        validate(TableDescription, content, block.page)
    elif "config" in content:
        sweep = validate(SweepConfig, content, block.page)
        for method in sweep.all_methods:
            for point in corners(sweep, method):
                settings = sweep.settings(method, point)
                load_config(Path("docs") / sweep.config, [f"{key}={to_yaml(value)}" for key, value in settings.items()])
    elif "tasks" in content and "model" in content:
        (folder / "run.yaml").write_text(block.text)
        load_config(folder / "run.yaml")
    else:
        fragment(content)


def fragment(content: dict[str, Any]) -> None:
    """Some keys of a configuration: each is validated as the field that it is; a data set is named where it is not."""
    know_all_parts()
    unknown = set(content) - {*RunConfig.model_fields, "extends"}
    assert not unknown, f"a configuration has no key {', '.join(sorted(unknown))}"
    for key, value in content.items():
        field = RunConfig.model_fields[key]
        value = {"path": "datasets/kuairand_pure", **value} if key == "data" else value
        TypeAdapter(
            Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        ).validate_python(value)  # type: ignore[misc]
