"""Changes that a resumed run allows, and those refused by name: settings, data, and a finished run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import dlrm_mtl
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.run.settings import MAY_CHANGE, ORDER, flat
from tests import synthetic

TRAINING: dict[str, Any] = {"epochs": 1, "max_steps": 2, "log_every": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set ``data`` and a run ``run`` that ends after two steps of six."""
    home = tmp_path_factory.mktemp("trained")
    synthetic.write_dataset(home / "data", rows=400)
    (home / "run.yaml").write_text(yaml.safe_dump(synthetic.config(home / "data", training=TRAINING)))
    dlrm_mtl.train(dlrm_mtl.load_config(home / "run.yaml"), home / "run", progress=False)
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "home"))


def resume(home: Path, *settings: str, on_purpose: tuple[str, ...] = (), data: Path | None = None) -> dlrm_mtl.Run:
    overrides = ["training.max_steps=4", *settings, *([f"data.path={data}"] if data else [])]
    config = dlrm_mtl.load_config(home / "run.yaml", overrides=overrides)
    return dlrm_mtl.train(config, home / "run", resume=True, set_on_resume=on_purpose, progress=False)


SETTINGS = {
    "seed=4": "seed was 3 and is now 4",
    "data.batch_size=32": "data.batch_size was 64 and is now 32",
    "data.shuffle=false": "data.shuffle was True and is now False",
    "data.max_sequence_length=4": "data.max_sequence_length was 50 and is now 4",
    "data.dense_limit=3": "data.dense_limit was null and is now 3.0",
    "data.dense=[price, age]": 'data.dense was ["age", "price"] and is now ["price", "age"]',
    "data.weight=price": "data.weight was null and is now price",
    "optimizer.sparse.learning_rate=0.1": "optimizer.sparse.learning_rate was 0.05 and is now 0.1",
    "optimizer.sparse.name=sgd": "optimizer.sparse.name was rowwise_adagrad and is now sgd",
    "optimizer.dense.learning_rate=0.1": "optimizer.dense.learning_rate was",
    "optimizer.schedule.warmup_steps=2": "optimizer.schedule.warmup_steps was 0 and is now 2",
    "model.embedding_dropout=0.3": "model.embedding_dropout was 0.1 and is now 0.3",
    "model.multitask.dropout=0.3": "model.multitask.dropout was 0.1 and is now 0.3",
    "model.embeddings.tables.tags.pooling=mean": "model.embeddings.tables.tags.pooling was sum and is now mean",
    "tasks.1.weight=0.7": "tasks.1.weight was 0.5 and is now 0.7",
    "tasks=[{name: buy, weight: 0.5}, {name: click}]": "tasks.0.name was click and is now buy",
    "balancing.name=pcgrad": "balancing.name was none and is now pcgrad",
    "task_weighting.name=uncertainty": "task_weighting.name was fixed and is now uncertainty",
    "training.matmul_precision=high": "training.matmul_precision was highest and is now high",
    "training.early_stopping.metric=click/auc": "training.early_stopping.metric was mean/auc and is now click/auc",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_that_change_the_result(trained: Path, setting: str) -> None:
    before = (trained / "run" / "config.yaml").read_text()
    with pytest.raises(dlrm_mtl.UserError) as raised:
        resume(trained, "optimizer.dense.name=adam", setting)
    sentence = str(raised.value)
    assert SETTINGS[setting] in sentence
    assert "\n" not in sentence
    assert ("--set-on-resume" in sentence) == (setting.partition("=")[0] not in ORDER)
    assert (trained / "run" / "config.yaml").read_text() == before


def _rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file, row_group_size=100)


def _first_label_flipped(table: pa.Table) -> pa.Table:
    labels = table["click"].to_pylist()
    return table.set_column(
        table.column_names.index("click"), "click", pa.array([1 - labels[0], *labels[1:]], pa.int8())
    )


def _exchange_labels(data: Path) -> None:
    text = (data / "dataset.yaml").read_text()
    spec = yaml.safe_load(text)
    spec["labels"][0]["column"], spec["labels"][1]["column"] = "buy", "click"
    (data / "dataset.yaml").write_text(yaml.safe_dump(spec))


DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "fewer rows": (
        lambda data: _rewrite(data / "train" / "part-0.parquet", lambda table: table.slice(0, 150)),
        "part-0.parquet: rows was 200 and is now 150",
    ),
    "rows in another order": (
        lambda data: _rewrite(data / "train" / "part-1.parquet", lambda table: table.take(list(range(199, -1, -1)))),
        "part-1.parquet: size was",
    ),
    "a file gone": (
        lambda data: (data / "train" / "part-1.parquet").unlink(),
        "part-1.parquet: this file is not there any more",
    ),
    "a file more": (
        lambda data: shutil.copy(data / "train" / "part-1.parquet", data / "train" / "part-2.parquet"),
        "part-2.parquet: this file is new since the run began",
    ),
    "files renamed": (
        lambda data: (data / "train" / "part-1.parquet").rename(data / "train" / "part-3.parquet"),
        "part-1.parquet: this file is not there any more",
    ),
    "files exchanged": (
        lambda data: [
            (data / "train" / "part-0.parquet").rename(data / "train" / "x"),
            (data / "train" / "part-1.parquet").rename(data / "train" / "part-0.parquet"),
            (data / "train" / "x").rename(data / "train" / "part-1.parquet"),
        ],
        "part-0.parquet: ",
    ),
    "labels exchanged": (_exchange_labels, "the column of label 'click' was 'click' when this run was trained"),
}


@pytest.mark.parametrize("what", DATA)
def test_other_rows(home: Path, what: str) -> None:
    change, sentence = DATA[what]
    change(home / "data")
    with pytest.raises(dlrm_mtl.UserError) as raised:
        resume(home, data=home / "data")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    (home / "run" / "contract.json").unlink()
    with pytest.raises(dlrm_mtl.UserError):
        resume(home, data=home / "data")


def test_changes_that_are_allowed_and_on_purpose(home: Path, trained: Path) -> None:
    """They are kept in config.yaml, and in the run's history with what was there before."""
    allowed = ("data.prefetch=2", "sharding.default=row_wise", "training.keep_checkpoints=1")
    run = resume(home, *allowed, data=home / "data", on_purpose=("optimizer.sparse.learning_rate=0.01",))
    assert run.config.optimizer.sparse.learning_rate == 0.01
    assert run.config.training.keep_checkpoints == 1
    history = [json.loads(line) for line in (home / "run" / "history.jsonl").read_text().splitlines()]
    assert [(entry["event"], entry["step"]) for entry in history] == [
        ("start", 0),
        ("end", 2),
        ("resume", 2),
        ("end", 4),
    ]
    changes = {change["key"]: (change["was"], change["is"]) for change in history[2]["changes"]}
    assert changes.pop("data.path") == (str(trained / "data"), str(home / "data"))
    assert changes == {
        "optimizer.sparse.learning_rate": ("0.05", "0.01"),
        "data.prefetch": ("4", "2"),
        "sharding.default": (changes["sharding.default"][0], "row_wise"),
        "training.max_steps": ("2", "4"),
        "training.keep_checkpoints": ("2", "1"),
    }
    with pytest.raises(dlrm_mtl.UserError, match=r"learning_rate was 0\.01 and is now 0\.05"):
        resume(home, *allowed, "training.max_steps=6", data=home / "data")


def test_a_finished_run_says_so(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.read_bytes() for path in (trained / "run").rglob("*") if path.is_file()}
    with caplog.at_level("INFO", logger="dlrm_mtl"):
        config = dlrm_mtl.load_config(trained / "run.yaml")
        run = dlrm_mtl.train(config, trained / "run", resume=True, progress=False)
    assert "this run was finished after step 2; nothing is left to do" in caplog.text
    assert run.metrics
    assert {path: path.read_bytes() for path in (trained / "run").rglob("*") if path.is_file()} == before


def test_set_on_resume_is_for_resuming(trained: Path, tmp_path: Path) -> None:
    config = dlrm_mtl.load_config(trained / "run.yaml")
    with pytest.raises(dlrm_mtl.UserError, match="--set-on-resume: goes with --resume"):
        dlrm_mtl.train(config, tmp_path / "new", set_on_resume=["seed=7"], progress=False)


def test_the_lists_name_keys(trained: Path, repository: Path) -> None:
    """Every key of the lists exists, and stands in the documentation."""
    config = dlrm_mtl.load_config(trained / "run.yaml")
    keys = flat(config.model_dump(mode="json"))
    text = (repository / "docs" / "runs.md").read_text()
    for key in (*MAY_CHANGE, *ORDER):
        assert any(known == key or known.startswith(f"{key}.") for known in keys), key
        assert f"`{key}`" in text, key
    assert isinstance(config, RunConfig)
