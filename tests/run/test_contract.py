"""A run owns its data contract: what changes in its data set does not change what it says, or is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

import dlrm_mtl
from tests import synthetic

Spec = dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set ``data``, trained on as ``run``, with its metrics and predictions."""
    home = tmp_path_factory.mktemp("trained")
    synthetic.write_dataset(home / "data", rows=400)
    spec = yaml.safe_load((home / "data" / "dataset.yaml").read_text())
    spec["features"][0]["fingerprint"] = "abc"
    spec["features"][4]["transform"] = "log1p"
    spec["labels"].append({"name": "unused", "column": "row", "kind": "real"})
    (home / "data" / "dataset.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    content = synthetic.config(home / "data", training={"epochs": 1, "max_steps": 4})
    dlrm_mtl.train(_config(home, content), home / "run", progress=False)
    return home


def _config(home: Path, content: dict[str, Any]) -> dlrm_mtl.RunConfig:
    (home / "run.yaml").write_text(yaml.safe_dump(content))
    return dlrm_mtl.load_config(home / "run.yaml")


@pytest.fixture(scope="module")
def predicted(trained: Path) -> pa.Table:
    table = dlrm_mtl.predict(trained / "run", trained / "data" / "test")
    assert table is not None
    return table


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """A copy of the data set to change, beside the run."""
    return Path(shutil.copytree(trained, tmp_path / "home"))


def change(folder: Path, edit: Callable[[Spec], object]) -> None:
    spec = yaml.safe_load((folder / "dataset.yaml").read_text())
    edit(spec)
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


def feature(spec: Spec, name: str) -> Spec:
    return next(each for each in spec["features"] if each["name"] == name)


HARMLESS: dict[str, Callable[[Spec], object]] = {
    "features in another order": lambda spec: spec["features"].reverse(),
    "labels in another order": lambda spec: spec["labels"].reverse(),
    "other statistics": lambda spec: feature(spec, "age").update(
        statistics={"mean": 3.0, "std": 2.0, "min": 0.0, "max": 9.0}
    ),
    "statistics gone": lambda spec: feature(spec, "age").pop("statistics"),
    "one more feature": lambda spec: spec["features"].insert(0, {"name": "row", "kind": "dense"}),
    "an unused label gone": lambda spec: spec["labels"].pop(),
    "another name": lambda spec: spec.update(name="anew"),
    "nothing said of the vocabulary": lambda spec: feature(spec, "user").pop("fingerprint"),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_a_description_that_is_read_through_the_contract(
    trained: Path, predicted: pa.Table, home: Path, what: str
) -> None:
    """The same to the last bit."""
    change(home / "data", HARMLESS[what])
    run = dlrm_mtl.open_run(home / "run")
    data = [f"data.path={home / 'data'}"]
    assert run.evaluate(overrides=data) == run.metrics
    if what == "features in another order":
        assert run.predict(home / "data" / "test", overrides=data).equals(predicted)


def _exchange(spec: Spec) -> None:
    feature(spec, "user")["column"], feature(spec, "item")["column"] = "item", "user"


REFUSED: dict[str, tuple[Callable[[Spec], object], str]] = {
    "columns exchanged": (
        _exchange,
        "the column of feature 'user' was 'user' when this run was trained, and is 'item'",
    ),
    "a larger vocabulary": (
        lambda spec: feature(spec, "item").update(vocabulary_size=300),
        "vocabulary_size of feature 'item' was 200 when this run was trained, and is 300",
    ),
    "another vocabulary": (
        lambda spec: feature(spec, "user").update(fingerprint="def"),
        "fingerprint of feature 'user' was 'abc' when this run was trained, and is 'def'",
    ),
    "a vocabulary of its own": (
        lambda spec: (feature(spec, "history").pop("vocabulary"), feature(spec, "history").update(vocabulary_size=200)),
        "the vocabulary of feature 'history' was that of 'item' when this run was trained, and is that of 'history'",
    ),
    "unbounded": (
        lambda spec: (feature(spec, "tags").pop("vocabulary_size"), feature(spec, "tags").update(unbounded=True)),
        "vocabulary_size of feature 'tags' was 30 when this run was trained, and is None",
    ),
    "another kind": (
        lambda spec: feature(spec, "tags").update(kind="sequence"),
        "kind of feature 'tags' was 'sparse' when this run was trained, and is 'sequence'",
    ),
    "another transform": (
        lambda spec: feature(spec, "age").update(transform="signed_log"),
        "transform of feature 'age' was 'log1p' when this run was trained, and is 'signed_log'",
    ),
    "a feature gone": (
        lambda spec: spec["features"].remove(feature(spec, "price")),
        "feature 'price' was dense when this run was trained, and is not there",
    ),
    "a label gone": (
        lambda spec: spec["labels"].pop(1),
        "label 'buy' was binary when this run was trained, and is not there",
    ),
    "labels exchanged": (
        lambda spec: (spec["labels"][0].update(column="buy"), spec["labels"][1].update(column="click")),
        "the column of label 'click' was 'click' when this run was trained, and is 'buy'",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_data_set_that_is_refused(home: Path, what: str) -> None:
    edit, sentence = REFUSED[what]
    change(home / "data", edit)
    with pytest.raises(dlrm_mtl.UserError) as raised:
        dlrm_mtl.evaluate(home / "run", overrides=[f"data.path={home / 'data'}"])
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    config = dlrm_mtl.load_config(home / "run.yaml", overrides=[f"data.path={home / 'data'}", "training.max_steps=5"])
    with pytest.raises(dlrm_mtl.UserError):
        dlrm_mtl.train(config, home / "run", resume=True, progress=False)


def test_the_data_set_is_gone(home: Path, trained: Path, predicted: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's folder, moved to another place and used from another folder, needs the files that it is to read only."""
    shutil.move(home / "data" / "test", home / "new")
    for name in ("config.yaml", "contract.json"):
        file = home / "run" / name
        file.write_text(file.read_text().replace(str(trained / "data"), "nowhere"))
    shutil.rmtree(home / "data")
    shutil.move(home / "run", home / "moved")
    monkeypatch.chdir(home)
    run = dlrm_mtl.open_run("moved")
    overrides = ["data.path=nowhere"]
    assert run.predict("new", overrides=overrides).equals(predicted)
    assert run.evaluate(input="new", overrides=overrides) == run.metrics
    with pytest.raises(dlrm_mtl.UserError, match="nowhere: there is no such folder"):
        run.evaluate(overrides=overrides)


def test_a_relative_path_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_dataset(tmp_path / "data", rows=200)
    monkeypatch.chdir(tmp_path)
    config = _config(tmp_path, synthetic.config(Path("data"), training={"epochs": 1, "max_steps": 2}))
    run = dlrm_mtl.train(config, tmp_path / "run", progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert dlrm_mtl.evaluate(tmp_path / "run") == run.metrics


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "data.dense=[price, age]",
            'data.dense was ["age", "price"] when this run was trained, and is now ["price", "age"]',
        ),
        ("model.embeddings.tables.tags.pooling=mean", "pooling was sum when this run was trained, and is now mean"),
        ("tasks.0.name=buy", "tasks.0.name was click when this run was trained, and is now buy"),
        ("data.max_sequence_length=3", "data.max_sequence_length was 50 when this run was trained, and is now 3"),
    ],
)
def test_settings_that_would_change_predictions(trained: Path, setting: str, sentence: str) -> None:
    overrides = ["tasks.1.name=click", setting] if setting.startswith("tasks") else [setting]
    for use in (
        lambda: dlrm_mtl.evaluate(trained / "run", overrides=overrides),
        lambda: dlrm_mtl.predict(trained / "run", trained / "data" / "test", overrides=overrides),
    ):
        with pytest.raises(dlrm_mtl.UserError) as raised:
            use()
        assert sentence in str(raised.value)


def test_the_contract_is_in_the_folder_and_in_checkpoints(trained: Path) -> None:
    contract = json.loads((trained / "run" / "contract.json").read_text())
    assert contract["sparse"] == ["user", "item", "tags"]
    assert contract["sequence"] == ["history"]
    assert contract["dense"] == ["age", "price"]
    assert contract["labels"] == contract["tasks"] == ["click", "buy"]
    assert [file["rows"] for file in contract["training_files"]] == [200, 200]
    latest = (trained / "run" / "checkpoints" / "latest").read_text()
    state = json.loads((trained / "run" / "checkpoints" / latest / "progress.json").read_text())
    del contract["training_files"]
    assert state["contract"] == contract
    assert state["config"]["training"]["max_steps"] == 4
