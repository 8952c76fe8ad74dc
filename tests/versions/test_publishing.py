"""Versions that a training publishes: base and deltas make the model of the step, and publishing changes nothing in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dlrm_mtl
from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.format import DTYPES
from dlrm_mtl.checkpoint.reader import targets
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.run_store import LocalStore
from dlrm_mtl.versions.chain import Chain
from dlrm_mtl.versions.content import VersionReader, read_delta
from dlrm_mtl.versions.format import StoredVersion
from tests import commands, hashed
from tests.processes import run_processes

UNBOUNDED: dict[str, object] = {"user": {"rows": 41, "eviction": "lru"}, "item": 150}
"""Less rows than ids, so that ids are evicted."""
SHARDINGS = [
    "data_parallel",
    "row_wise",
    "grid_shard",
    "table_column_wise",
    "column_wise",
    "table_wise",
    "table_row_wise",
]
OPTIMIZERS = ["clippy_rowwise_adagrad", "adam", "ftrl", "sgd", "rowwise_adam", "adagrad", "rowwise_adagrad"]


def configuration(
    folder: Path, data: Path, sharding: str, sparse: str, publish: dict[str, Any] | None, background: bool = True
) -> Any:
    training: dict[str, Any] = {
        "epochs": 2,
        "max_steps": 5,
        "log_every": 1,
        "checkpoint_every": 2,
        "keep_checkpoints": 9,
        "async_checkpoints": background,
    }
    content = hashed.config(
        data,
        UNBOUNDED,
        training={**training, "publish": publish},
        sharding={"default": sharding, "processes_per_host": 1},
        optimizer={"sparse": {"name": sparse, "learning_rate": 0.05}},
    )
    return dlrm_mtl.load_config(commands.write_config(folder / f"run_{os.getpid()}.yaml", content))


def publishing(folder: Path) -> dict[str, Any]:
    return {"every_steps": 2, "to": str(folder / "versions"), "base_share": 1000.0}


def whole(store: LocalStore, versions: list[StoredVersion]) -> dict[str, Tensor]:
    """Tensors of the last version, from the base and all deltas."""
    base, *deltas = versions
    reader = VersionReader(store, base)
    tensors = reader.read(name for name in reader.index.tensors if not name.startswith("golden."))
    for stored in deltas:
        delta = read_delta(store, stored)
        for kind, changes in (("tables", delta.tables), ("ids", delta.ids)):
            for name, changed in changes.items():
                tensors[f"{kind}.{name}"][changed.rows] = changed.values
        tensors.update({f"dense.{name}": value for name, value in delta.dense.items()})
    return tensors


def stored(run: Path, step: int) -> dict[str, Tensor]:
    """Tensors of a checkpoint, by the names that versions have."""
    opened = Checkpoints(LocalStore(run)).open(f"step_{step:08d}")
    found = {name: torch.empty(each.shape, dtype=DTYPES[each.dtype]) for name, each in opened.index.tensors.items()}
    opened.reader.fill(targets(found))
    return {name.removesuffix(".ids") if name.startswith("ids.") else name: value for name, value in found.items()}


def train(rank: int, folder: Path, data: Path, pairs: list[tuple[str, str]]) -> None:
    for sharding, sparse in pairs:
        own = folder / f"{sharding}-{sparse}"
        own.mkdir(exist_ok=True)
        config = configuration(own, data, sharding, sparse, publishing(own))
        dlrm_mtl.train(config, own / "run", progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hashed.write_dataset(tmp_path_factory.mktemp("hashed"), rows=400)


ALL = [*zip(SHARDINGS, OPTIMIZERS, strict=True)]


@pytest.mark.parametrize(
    ("processes", "pairs"),
    [
        pytest.param(1, ALL, marks=pytest.mark.slow, id="1"),
        pytest.param(2, ALL, marks=pytest.mark.slow, id="2"),
        pytest.param(4, ALL, marks=pytest.mark.slow, id="4"),
    ],
)
def test_base_and_deltas_are_the_checkpoint_under_every_plan(
    tmp_path: Path, data: Path, processes: int, pairs: list[tuple[str, str]]
) -> None:
    run_processes(processes, train, tmp_path, data, pairs)
    for sharding, sparse in pairs:
        own = tmp_path / f"{sharding}-{sparse}"
        store = LocalStore(own / "versions")
        found = Chain(store).newest()
        assert found.problem is None
        assert [each.version.step for each in found.versions] == [2, 4, 5]
        assert [each.version.kind for each in found.versions] == ["base", *2 * ["delta"]]
        for count in (1, 2, 3):
            step = found.versions[count - 1].version.step
            wanted = stored(own / "run", step)
            for name, tensor in whole(store, found.versions[:count]).items():
                assert torch.equal(tensor, wanted[name]), (sharding, sparse, step, name)


def test_publishing_changes_nothing_in_training(tmp_path: Path, data: Path) -> None:
    results = []
    for name in ("without", "with"):
        own = tmp_path / name
        own.mkdir()
        config = configuration(own, data, "table_wise", "sgd", publishing(own) if name == "with" else None)
        dlrm_mtl.train(config, own / "run", progress=False)
        kept = ("kind", "step", "loss/", "click/", "buy/", "mean/", "largest_move/", "ids/")
        lines = [json.loads(line) for line in (own / "run" / "metrics.jsonl").read_text().splitlines()]
        figures = [{key: value for key, value in line.items() if key.startswith(kept)} for line in lines]
        results.append((figures, stored(own / "run", 5)))
    (figures, tensors), (others, same) = results
    assert figures == others
    assert all(torch.equal(tensor, same[name]) for name, tensor in tensors.items())


def test_a_resumed_run_publishes_a_base_and_goes_on(tmp_path: Path, data: Path) -> None:
    config = configuration(tmp_path, data, "table_wise", "sgd", publishing(tmp_path), background=False)

    class Stop(dlrm_mtl.Listener):
        def on_step(self, event: dlrm_mtl.events.Step) -> None:
            if event.step == 4:
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        dlrm_mtl.train(config, tmp_path / "run", progress=False, listeners=[Stop()])
    chain = Chain(LocalStore(tmp_path / "versions"))
    assert [each.version.step for each in chain.newest().versions] == [2]
    dlrm_mtl.train(config, tmp_path / "run", progress=False, resume=True)
    found = chain.newest()
    assert [each.version.step for each in found.versions] == [4, 5]
    assert [each.version.number for each in found.versions] == [2, 3]
    wanted = stored(tmp_path / "run", 5)
    for name, tensor in whole(LocalStore(tmp_path / "versions"), found.versions).items():
        assert torch.equal(tensor, wanted[name]), name


def test_old_versions_are_removed(tmp_path: Path, data: Path) -> None:
    publish = {"every_steps": 1, "to": str(tmp_path / "versions"), "base_share": 100.0, "base_every": 1, "keep": 2}
    dlrm_mtl.train(configuration(tmp_path, data, "table_wise", "sgd", publish), tmp_path / "run", progress=False)
    chain = Chain(LocalStore(tmp_path / "versions"))
    kinds = {number: chain.read(number).version.kind for number in chain.numbers()}
    assert kinds == {3: "base", 4: "delta", 5: "base"}
    assert {path.name for path in (tmp_path / "versions").iterdir()} == {
        "chain.json",
        *(f"version_{number:08d}" for number in kinds),
    }


@pytest.mark.parametrize(
    ("publish", "sentence"),
    [
        ({"to": "x"}, "training.publish: has neither of every_steps and every_minutes; write one of them, such as"),
        (
            {"to": "x", "every_steps": 1, "every_minutes": 1},
            "training.publish: has both of every_steps and every_minutes",
        ),
    ],
    ids=["neither", "both"],
)
def test_an_interval_is_needed(tmp_path: Path, data: Path, publish: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        configuration(tmp_path, data, "table_wise", "sgd", publish)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_published_to(tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    (tmp_path / "foreign").mkdir()
    Chain(LocalStore(tmp_path / "foreign")).begin("a" * 32)
    for name, sentence in (
        ("file/below", "this output folder cannot be written to; name another one with training.publish.to."),
        ("other", "this folder holds other files; name a new or empty one."),
        (
            "foreign",
            "holds the versions of another run; name another folder, or remove this one if no server follows it.",
        ),
    ):
        publish = {"every_steps": 2, "to": str(tmp_path / name)}
        with pytest.raises(UserError) as error:
            dlrm_mtl.train(
                configuration(tmp_path, data, "table_wise", "sgd", publish), tmp_path / "run", progress=False
            )
        assert str(error.value) == f"training.publish.to: {tmp_path / name}: {sentence}"
        assert not (tmp_path / "run").exists()
