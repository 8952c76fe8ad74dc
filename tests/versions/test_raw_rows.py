"""Raw rows of published versions: bundles have those that an export has, and score them while the data set is gone."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlrm_mtl
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.prepare.table.adapter import prepare_table
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.run.published_source import published_source
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.follow.assemble import write_version
from dlrm_mtl.serve.follow.source import FollowedVersions
from dlrm_mtl.storage.run_store import LocalStore
from dlrm_mtl.versions.chain import Chain
from tests import commands
from tests.serve.raw.test_raw_bundle import DESCRIPTION, log
from tests.versions.test_assembling import content
from tests.versions.test_publishing import publishing

RECIPES = ["table", "vocabularies only", "neither"]


@pytest.fixture(scope="module", params=RECIPES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, with and without a recipe, a run that published versions 1 to 3, and two exports."""
    folder = tmp_path_factory.mktemp("raw")
    log(1500, 0).to_csv(folder / "old.csv", index=False)
    prepare_table([folder / "old.csv"], folder / "data", validate(TableDescription, DESCRIPTION, "description"))
    if request.param != "table":
        (folder / "data/table.yaml").unlink()
    if request.param == "neither":
        (folder / "data/vocabularies.parquet").unlink()
    config: dict[str, Any] = {
        "name": "shop",
        "data": {"path": str(folder / "data"), "batch_size": 128, "lanes": 4},
        "tasks": [{"name": "click"}, {"name": "good"}],
        "model": {"embeddings": {"dim": 8}, "multitask": {"name": "shared_bottom", "layers": [16]}},
        "training": {
            "max_steps": 5,
            "checkpoint_every": 2,
            "keep_checkpoints": 9,
            "publish": publishing(folder),
        },
    }
    loaded = dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", config))
    dlrm_mtl.train(loaded, folder / "run", progress=False)
    for step in (2, 5):
        export_run(folder / "run", folder / f"export_{step}", f"step_{step}")
    (folder / "data").rename(folder / "gone")
    return folder


def test_applied_versions_have_the_bytes_of_an_export(trained: Path, tmp_path: Path) -> None:
    store = LocalStore(trained / "versions")
    versions = Chain(store).newest().versions
    for count, step in ((1, 2), (3, 5)):
        write_version(store, versions[:count], tmp_path / f"applied_{step}")
        wanted, found = content(trained / f"export_{step}"), content(tmp_path / f"applied_{step}")
        assert wanted.keys() == found.keys()
        assert [name for name in wanted if wanted[name] != found[name]] == []
        assert ("values.safetensors" in found) == (trained / "gone/vocabularies.parquet").exists()


@pytest.mark.parametrize("format", ["fp32", "int8"])
def test_followed_versions_score_raw_rows(trained: Path, tmp_path: Path, format: Any) -> None:
    rows = log(300, 1).drop(columns=["click", "grade"])
    make = partial(dlrm_mtl.Scorer, rows="raw", missing="default")
    source = FollowedVersions(str(trained / "versions"), make, tmp_path / "cache", format=format)
    (version,) = source.versions()
    if not (trained / "gone/vocabularies.parquet").exists():
        with pytest.raises(UserError, match="this bundle knows no raw rows"):
            version.load(None)
        return
    if not (trained / "gone/table.yaml").exists():
        rows = rows.rename(columns={"item_no": "item"})
        rows["seen"] = [each.split() for each in rows["seen"]]
        rows["marks"] = [[] for _ in rows["marks"]]
        rows["price"] = rows["age"] = rows["balance"] = 0.5
    folder = trained / "export_5"
    if format != "fp32":
        store, folder = LocalStore(trained / "versions"), tmp_path / "applied"
        write_version(store, Chain(store).newest().versions, folder, format=format)
    found, wanted = version.load(None).score(rows), make(folder).score(rows)
    assert all(np.array_equal(found[task], wanted[task]) for task in wanted)
    lines = [json.loads(line) for line in (version.load(None).folder / "golden.jsonl").read_text().splitlines()]
    assert all("raw" in line for line in lines)


def test_other_vocabularies_are_not_published(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset(trained / "gone")
    caplog.set_level(logging.INFO)
    state = RunState(contract={"vocabularies": "0" * 64})
    known = (trained / "gone/vocabularies.parquet").exists()
    assert published_source(dataset, state) == {}
    assert ("is not the one of the run's training" in caplog.text) == known


def test_training_goes_on_without_files_to_read(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(trained / "gone", tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    shutil.rmtree(tmp_path / "data/train")
    caplog.set_level(logging.INFO)
    assert published_source(dataset, RunState()) == {}
    known = any((trained / "gone" / name).exists() for name in ("table.yaml", "vocabularies.parquet"))
    assert ("note: published versions score prepared rows only: " in caplog.text) == known
