"""Features that are known in training only: read there, and constant in evaluation, prediction and serving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import dlrm_mtl
from dlrm_mtl.config.check import check_against_data_set
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.data.row_reader import iterate_rows
from dlrm_mtl.serve.export import export_run
from tests import commands, synthetic

CONSTANTS = {"user": 5, "item": 3, "tags": None, "history": None, "price": 0.5, "age": None}
COLUMNS = {
    "user": pa.scalar(5, pa.int64()),
    "item": pa.scalar(3, pa.int32()),
    "tags": pa.scalar(None, pa.list_(pa.int64())),
    "history": pa.scalar(None, pa.list_(pa.int64())),
    "price": pa.scalar(0.5, pa.float32()),
    "age": pa.scalar(None, pa.float64()),
}
SOME = {"item": 3, "price": 0.5, "history": None}


def rewrite(data: Path, copy: Path, names: Iterable[str], remove: bool = False) -> Path:
    """A copy of the data set whose columns ``names`` hold constants, or are not there."""
    shutil.copytree(data, copy)
    for path in copy.rglob("*.parquet"):
        table = pq.read_table(path)
        for name in names:
            constant = pa.repeat(COLUMNS[name], table.num_rows)
            table = (
                table.drop_columns([name])
                if remove
                else table.set_column(table.column_names.index(name), name, constant)
            )
        pq.write_table(table, path)
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a run in which some features are for training only, and its bundle."""
    folder = tmp_path_factory.mktemp("train_only")
    data = synthetic.write_dataset(folder / "data", rows=300)
    content = synthetic.config(data, training={"epochs": 1, "max_steps": 4, "log_every": 2, "evaluate_every": 2})
    content["data"] |= {"train_only": {**SOME, "user": 7}, "unbounded": {"user": 40}}  # type: ignore[operator]
    dlrm_mtl.train(
        dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", content)), folder / "run", progress=False
    )
    export_run(folder / "run", folder / "bundle")
    return folder


def batches(data: Path, served: bool, train_only: dict[str, Any]) -> list[tuple[torch.Tensor, ...]]:
    config = DataConfig(path=str(data), batch_size=40, lanes=4, block_rows=50, train_only=train_only)
    loader = BatchLoader(open_dataset(data).split("validation"), config, ["click"], seed=2, served=served)
    return [parts(batch) for batch in loader.epoch(0)]


def parts(batch: dlrm_mtl.Batch) -> tuple[torch.Tensor, ...]:
    return batch.sparse.values(), batch.sparse.lengths(), batch.dense, batch.labels, batch.weights


def test_batches_are_those_of_files_with_constants(folder: Path, tmp_path: Path) -> None:
    constant = rewrite(folder / "data", tmp_path / "constant", CONSTANTS)
    absent = rewrite(folder / "data", tmp_path / "absent", CONSTANTS, remove=True)
    wanted = batches(constant, False, {})
    torch.testing.assert_close(batches(folder / "data", True, CONSTANTS), wanted, rtol=0, atol=0)
    torch.testing.assert_close(batches(absent, True, CONSTANTS), wanted, rtol=0, atol=0)
    own = batches(folder / "data", False, CONSTANTS)
    torch.testing.assert_close(own, batches(folder / "data", False, {}), rtol=0, atol=0)
    assert not torch.equal(own[0][2], wanted[0][2])
    spec = open_dataset(constant).spec
    found = []
    for source, train_only in ((constant, {}), (absent, CONSTANTS)):
        rows = iterate_rows(source / "test", spec, DataConfig(path="", train_only=train_only), 20, labels=["click"])
        found.append([parts(batch) for batch, _ in rows])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_what_is_evaluated_is_what_is_served(folder: Path, tmp_path: Path) -> None:
    names = [*SOME, "user"]
    absent = rewrite(folder / "data", tmp_path / "absent", names, remove=True)
    table = pq.read_table(folder / "data/test")
    run = dlrm_mtl.open_run(folder / "run")
    wanted = run.predict(folder / "data/test")
    found = run.predict(absent / "test")
    assert isinstance(wanted, pa.Table)
    assert wanted.equals(found)
    assert len(np.unique(wanted["click"])) > 30, "the other features count"
    measured = dlrm_mtl.evaluate(folder / "run", input=folder / "data/test")
    assert measured == dlrm_mtl.evaluate(folder / "run", input=absent / "test") == dlrm_mtl.evaluate(folder / "run")

    scorer = dlrm_mtl.Scorer(folder / "bundle")
    assert scorer.golden_difference <= 1e-6
    golden = json.loads((folder / "bundle/golden.jsonl").read_text().splitlines()[0])
    assert sorted(golden["row"]) == ["age", "tags"]
    for rows in (table, table.drop_columns(names), table.select(["age", "tags"]).to_pylist()):
        scores = scorer.score(rows)
        for task in scorer.tasks:
            np.testing.assert_allclose(scores[task], wanted[task].to_numpy(), rtol=0, atol=1e-6)
    assert scorer.score([{"age": 30, "tags": [1], "item": "what the log says"}])["click"].shape == (1,)
    assert scorer.counts == {"missing": {}, "unknown": {}}
    with pytest.raises(UserError, match="missing: there is no feature 'item' to which this applies"):
        dlrm_mtl.Scorer(folder / "bundle", missing={"item": "default"})


def test_training_still_needs_the_columns(folder: Path, tmp_path: Path) -> None:
    absent = rewrite(folder / "data", tmp_path / "absent", SOME, remove=True)
    config = dlrm_mtl.load_config(folder / "run.yaml", [f"data.path={absent}"])
    with pytest.raises(UserError, match="column 'item', which sparse feature 'item' reads, is missing"):
        dlrm_mtl.train(config, tmp_path / "run", progress=False)


def test_a_constant_is_part_of_the_contract(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train_only\.item was 3 when this run was trained, and is now 4"):
        dlrm_mtl.evaluate(folder / "run", overrides=["data.train_only.item=4"])


@pytest.mark.parametrize(
    ("constant", "sentence"),
    [
        ({"itm": 1}, r"data\.train_only\.itm: the run reads no feature of this name; did you mean 'item'"),
        (
            {"item": 200},
            r"data\.train_only\.item: 200 is no id of the feature; give one from 0 to 199, or null for none",
        ),
        ({"item": 1.5}, r"train_only\.item: 1\.5 is no id of the feature"),
        ({"history": 1}, r"train_only\.history: 1 is no constant for a sequence; give null, for none"),
        ({"item": "first"}, r"data\.train_only\.item"),
    ],
)
def test_mistakes(folder: Path, tmp_path: Path, constant: dict[str, Any], sentence: str) -> None:
    content = synthetic.config(folder / "data")
    content["data"] |= {"train_only": constant}  # type: ignore[operator]
    with pytest.raises(UserError, match=sentence):
        check_against_data_set(dlrm_mtl.load_config(commands.write_config(tmp_path / "run.yaml", content)), "run.yaml")
