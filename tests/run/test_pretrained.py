"""Tables begin with vectors from Parquet files, and are trained freely, slowly or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import dlrm_mtl
from tests import synthetic
from tests.run.test_warm_start import (
    PLANS,
    old_values,
    refused,
    started,
    stored,
    train,
    write_config,
    write_vocabularies,
)

DIM = 8


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, DIM)).astype(np.float32)


def write_vectors(path: Path, keys: dict[str, Any], numbers: Any, row_group_size: int = 50) -> Path:
    column = numbers if isinstance(numbers, pa.Array) else pa.array(list(numbers), pa.list_(pa.float32()))
    pq.write_table(pa.table({**keys, "vector": column}), path, row_group_size=row_group_size)
    return path


def with_vectors(path: Path, data: Path, tables: dict[str, Any], **changes: object) -> Path:
    """A configuration with pretrained vectors by table."""
    content = yaml.safe_load(write_config(path, data, **changes).read_text())
    content["model"]["embeddings"]["tables"] = {name: {"pretrained": options} for name, options in tables.items()}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set ``data``; ``items``, vectors of 150 of its items and of 10 others in two files; ``users``, by ids."""
    home = tmp_path_factory.mktemp("pretrained")
    synthetic.write_dataset(home / "data", rows=400)
    write_vocabularies(home / "data", old_values())
    names = [*old_values()["item"][40:190][::-1], *(f"other {number}" for number in range(10))]
    (home / "items").mkdir()
    fixed = pa.FixedSizeListArray.from_arrays(vectors(160)[:70].ravel(), DIM)
    write_vectors(home / "items" / "a.parquet", {"value": names[:70]}, fixed)
    write_vectors(home / "items" / "b.parquet", {"value": names[70:]}, vectors(160)[70:])
    users = pa.array(np.arange(20, 60), pa.int32())
    write_vectors(home / "users.parquet", {"id": users}, pa.array(vectors(40).tolist(), pa.large_list(pa.float64())))
    return home


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("plan", PLANS)
def test_the_same_under_every_plan(home: Path, tmp_path: Path, plan: str, processes: int) -> None:
    tables = {"item": {"path": str(home / "items"), "train": "slow"}, "user": str(home / "users.parquet")}
    path = with_vectors(tmp_path / "run.yaml", home / "data", tables, sharding=PLANS[plan])
    tensors, report = started(path, processes)
    fresh, _ = started(write_config(tmp_path / "fresh.yaml", home / "data"))
    item, user = fresh["tables.item"], fresh["tables.user"]
    item[41:191] = torch.from_numpy(vectors(160)[:150]).flip(0)
    user[20:60] = torch.from_numpy(vectors(40))
    for name, tensor in tensors.items():
        assert torch.equal(tensor, fresh[name]), name
    assert report == {
        "pretrained": {
            "item": {"path": str(home / "items"), "train": "slow", "ids": 200, "with_vector": 150, "unused": 10},
            "user": {"path": str(home / "users.parquet"), "train": "free", "ids": 60, "with_vector": 40, "unused": 0},
        }
    }


def test_a_frozen_table_stays(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither its weights nor its state change, while the others learn; unfrozen on purpose, it learns, too."""
    tables = {"item": {"path": str(home / "items"), "train": "frozen"}}
    optimizer = {"sparse": {"name": "clippy_rowwise_adagrad", "learning_rate": 0.1}}
    path = with_vectors(tmp_path / "run.yaml", home / "data", tables, optimizer=optimizer)
    before, _ = started(path)
    run = train(path, tmp_path / "run")
    after = stored(tmp_path / "run")
    for name in ("tables.item", "table_state.item.accumulator"):
        assert torch.equal(after[name], before[name]), name
    assert not torch.equal(after["tables.user"], before["tables.user"])
    assert all(entry.get("factor/item", 1.0) == 1.0 for entry in run.history)
    assert json.loads((tmp_path / "run" / "init.json").read_text())["pretrained"]["item"]["train"] == "frozen"
    free = "model.embeddings.tables.item.pretrained.train=free"
    config = dlrm_mtl.load_config(path, overrides=["training.max_steps=4"])
    dlrm_mtl.train(config, tmp_path / "run", resume=True, set_on_resume=[free], progress=False)
    assert not torch.equal(stored(tmp_path / "run")["tables.item"], before["tables.item"])


def test_balancing_does_not_see_a_frozen_table(home: Path, tmp_path: Path) -> None:
    """Gradients of tables are balanced table by table; the frozen one has none."""
    balancing = {"name": "pcgrad", "level": "parameters"}
    factors = {}
    for train_item in ("free", "frozen"):
        tables = {"item": {"path": str(home / "items"), "train": train_item}}
        path = with_vectors(tmp_path / "run.yaml", home / "data", tables, balancing=balancing)
        factors[train_item] = train(path, tmp_path / train_item).history
    first = [next(entry for entry in history if entry["kind"] == "train") for history in factors.values()]
    assert first[0]["loss/click"] == first[1]["loss/click"]
    conflicts = [{key: value for key, value in entry.items() if key.startswith("balancing/")} for entry in first]
    assert conflicts[0] != conflicts[1]
    before, _ = started(tmp_path / "run.yaml")
    assert torch.equal(stored(tmp_path / "frozen")["tables.item"], before["tables.item"])


def test_a_warm_start_leaves_them_alone(home: Path, tmp_path: Path) -> None:
    train(write_config(tmp_path / "old.yaml", home / "data"), tmp_path / "old")
    tables = {"item": str(home / "items")}
    path = with_vectors(tmp_path / "run.yaml", home / "data", tables, init_from=str(tmp_path / "old"))
    tensors, report = started(path)
    assert torch.equal(tensors["tables.item"][41:191], torch.from_numpy(vectors(160)[:150]).flip(0))
    assert torch.equal(tensors["tables.user"], stored(tmp_path / "old")["tables.user"])
    assert report["init_from"]["left"] == ["tables.item"]
    assert report["init_from"]["initialised"] == []


REFUSALS: dict[str, tuple[dict[str, Any], list[Any], dict[str, Any], str]] = {
    "width": (
        {"id": [1, 2]},
        [[1.0] * 12] * 2,
        {},
        "a vector has 12 numbers and the table has 8 columns; set its dim to 12",
    ),
    "twice": ({"id": [3, 3]}, [[1.0] * 8] * 2, {}, "the id 3 has more than one vector"),
    "null vector": ({"id": [1, 2]}, [[1.0] * 8, None], {}, "column 'vector' holds null"),
    "null key": ({"id": [1, None]}, [[1.0] * 8] * 2, {}, "column 'id' holds null"),
    "nan": ({"id": [1]}, [[float("nan")] * 8], {}, "holds a number that is not finite"),
    "no key": ({"ids": [1]}, [[1.0] * 8], {}, "there is no column 'value'; there are: ids, vector"),
    "no vector": ({"id": [1]}, [[1.0] * 8], {"vector": "vectr"}, "there is no column 'vectr'; did you mean 'vector'?"),
    "texts as ids": ({"id": ["a"]}, [[1.0] * 8], {}, "column 'id' holds string where ids are integers"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_files_that_do_not_fit(home: Path, tmp_path: Path, what: str) -> None:
    keys, numbers, options, sentence = REFUSALS[what]
    file = write_vectors(tmp_path / "vectors.parquet", keys, numbers)
    found = refused(with_vectors(tmp_path / "run.yaml", home / "data", {"item": {"path": str(file), **options}}))
    assert found.startswith("model.embeddings.tables.item.pretrained: ")
    assert sentence in found


def test_values_without_a_vocabulary(home: Path, tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path / "data", rows=400)
    path = with_vectors(tmp_path / "run.yaml", tmp_path / "data", {"item": str(home / "items")})
    assert "vocabularies.parquet: there is no such file" in refused(path)


def test_a_configuration_is_checked(home: Path, tmp_path: Path, call: Any) -> None:
    path = with_vectors(tmp_path / "run.yaml", home / "data", {"item": {"path": str(tmp_path / "none.parquet")}})
    code, said = call("config", "check", path)
    assert (code, "none.parquet: there is no such file or folder" in said) == (2, True), said
    path = with_vectors(tmp_path / "run.yaml", home / "data", {"item": {"path": "x", "train": "frozen", "rate": 0.1}})
    code, said = call("config", "check", path)
    assert (code, "rate 0.1 has no meaning beside train: frozen" in said) == (2, True), said
    path = with_vectors(tmp_path / "run.yaml", home / "data", {"item": str(home / "items")})
    assert call("config", "check", path)[0] == 0
