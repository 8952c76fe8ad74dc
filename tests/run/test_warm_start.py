"""A new run takes parts of another run's checkpoint, by name and by value, under any plan and number of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor

import dlrm_mtl
from dlrm_mtl.config.init_from import InitFromConfig, renamed
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.run.warm_source import pair_tensors
from tests import synthetic
from tests.commands import run as command
from tests.processes import run_processes

PLANS: dict[str, dict[str, Any]] = {
    "rows": {"default": "row_wise", "tables": {"tags": "data_parallel"}},
    "columns": {
        "default": "column_wise",
        "tables": {"user": "table_wise", "item": {"type": "column_wise", "column_shards": 2}},
    },
}
DTYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "BOOL": np.bool_}


def write_vocabularies(folder: Path, values: dict[str, list[str]]) -> None:
    """Values of ids 1, 2, ... by feature; dataset.yaml follows."""
    rows = [(name, number + 1, value) for name, own in values.items() for number, value in enumerate(own)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = pa.table({"feature": columns[0], "id": pa.array(columns[1], pa.int32()), "value": columns[2]})
    pq.write_table(table, folder / "vocabularies.parquet")
    spec = yaml.safe_load((folder / "dataset.yaml").read_text())
    for feature in spec["features"]:
        if feature["name"] in values:
            feature["vocabulary_size"] = len(values[feature["name"]]) + 1
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


def old_values() -> dict[str, list[str]]:
    return {name: [f"{name} {number}" for number in range(1, size)] for name, size in synthetic.SIZES.items()}


def new_values() -> dict[str, list[str]]:
    """Items in another order, 20 of them gone and 61 new; users as they were."""
    items = old_values()["item"][20:] + [f"new item {number}" for number in range(61)]
    order = np.random.default_rng(5).permutation(len(items))
    return {**old_values(), "item": [items[place] for place in order]}


def write_config(path: Path, folder: Path, /, **changes: object) -> Path:
    training = {"epochs": 1, "max_steps": 2, "log_every": 1}
    path.write_text(yaml.safe_dump(synthetic.config(folder, **{"training": training, **changes})))
    return path


def train(path: Path, output: Path | str, **options: Any) -> dlrm_mtl.Run:
    return dlrm_mtl.train(dlrm_mtl.load_config(path), output, progress=False, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set ``data``, a run ``old`` on it, and ``grown``, a data set with another vocabulary of items."""
    home = tmp_path_factory.mktemp("warm")
    synthetic.write_dataset(home / "data", rows=400)
    write_vocabularies(home / "data", old_values())
    shutil.copytree(home / "data", home / "grown")
    write_vocabularies(home / "grown", new_values())
    train(write_config(home / "old.yaml", home / "data"), home / "old")
    return home


def stored(run: Path) -> dict[str, Tensor]:
    """All tensors of the latest checkpoint of a run of one process, read by their offsets."""
    folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text()
    found = {}
    for name, tensor in json.loads((folder / "index.json").read_text())["tensors"].items():
        (chunk,) = tensor["chunks"]
        content = (folder / chunk["file"]).read_bytes()[chunk["start"] : chunk["stop"]]
        numbers = np.frombuffer(content, DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        found[name] = torch.from_numpy(numbers.copy())
    return found


def begin(rank: int, path: str) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    """All tensors of a run before its first step, whole, on the first process; and the content of init.json."""
    import torch.distributed as dist

    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.checkpoint.tensors import flatten
    from dlrm_mtl.core.processes import this_process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.run.folder import RunFolder
    from dlrm_mtl.run.initial import begin_weights
    from dlrm_mtl.run.training_data import open_training_data
    from dlrm_mtl.storage.run_store import LocalStore
    from dlrm_mtl.training.build import build_model, build_optimizers
    from dlrm_mtl.training.tensors import RunTensors
    from tests.embeddings.two_phase_model import whole

    config = dlrm_mtl.load_config(path)
    folder = RunFolder(LocalStore(Path(path).parent / "none"))
    data = open_training_data(config, open_dataset(config.data.path), None, folder, this_process())
    model = build_model(config, data.dataset.spec, this_process())
    optimizers = build_optimizers(config, model, 2)
    report = begin_weights(config.init_from, data, model, optimizers, RunState(), folder)
    tensors = {name: whole(value) for name, value in flatten(RunTensors(model, optimizers).tensors()).items()}
    dist.barrier()
    return tensors, report


def started(path: Path, processes: int = 1) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, report = run_processes(processes, begin, str(path))[0]
    return tensors, report


def refused(path: Path) -> str:
    """The sentence that a run ends with before its first step."""
    with pytest.raises(dlrm_mtl.UserError) as raised:
        train(path, path.parent / "none")
    assert not (path.parent / "none").exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture(scope="module")
def expected(home: Path) -> dict[str, Tensor]:
    """All tensors of a run on ``grown``: those of the old run, items moved by their values, new items with first weights."""
    fresh, _ = started(write_config(home / "fresh.yaml", home / "grown"))
    was = stored(home / "old")
    result = {
        **was,
        "tables.item": fresh["tables.item"],
        "table_state.item.accumulator": fresh["table_state.item.accumulator"],
    }
    place = {value: number + 1 for number, value in enumerate(old_values()["item"])}
    for name in ("tables.item", "table_state.item.accumulator"):
        result[name][0] = was[name][0]
        for number, value in enumerate(new_values()["item"]):
            if value in place:
                result[name][number + 1] = was[name][place[value]]
    return result


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("plan", PLANS)
def test_the_same_under_every_plan(
    home: Path, expected: dict[str, Tensor], tmp_path: Path, plan: str, processes: int
) -> None:
    init = {"run": str(home / "old"), "optimizer_state": True}
    path = write_config(tmp_path / "run.yaml", home / "grown", init_from=init, sharding=PLANS[plan])
    tensors, report = started(path, processes)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name
    assert report["init_from"]["tables"]["item"] == {"from": "item", "rows": 180, "new_rows": 61, "left_rows": 20}


def test_a_run_says_what_it_took(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    init = {"run": str(home / "old"), "skip": ["towers", "tags"], "dense": ["towers", "multitask"]}
    write_config(tmp_path / "run.yaml", home / "grown", init_from=init)
    done = command("train", tmp_path / "run.yaml", "--output", tmp_path / "run", processes=2)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("init_from")]
    assert lines == [
        f"init_from: took 2 tables and 4 other tensors of {home / 'old'} (step_00000002); 7 keep their initial weights, 7 of "
        f"the checkpoint are left: see {tmp_path / 'run' / 'init.json'}",
        "init_from: item: 180 rows taken, 61 new, 20 left",
    ]
    said = json.loads((tmp_path / "run" / "init.json").read_text())["init_from"]
    assert sorted(said["tables"]) == ["item", "user"]
    assert sorted(said["dense"]) == [
        "multitask.experts.layers.0.bias",
        "multitask.experts.layers.0.weight",
        "multitask.gates.bias",
        "multitask.gates.weight",
    ]
    assert said["left"] == said["initialised"]
    assert "tables.tags" in said["left"]


def test_names_are_mapped(home: Path, tmp_path: Path) -> None:
    """The feature ``user`` is called ``member`` now, and its values are found under this name."""
    data = shutil.copytree(home / "data", tmp_path / "data")
    spec = yaml.safe_load((data / "dataset.yaml").read_text())
    spec["features"][0] |= {"name": "member", "column": "user"}
    (data / "dataset.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    values = old_values()
    users = values.pop("user")
    write_vocabularies(data, {"member": users[::-1], **values})
    init = {"run": str(home / "old"), "map": {"user": "member"}, "dense": False}
    tensors, report = started(write_config(tmp_path / "run.yaml", data, init_from=init))
    was = stored(home / "old")["tables.user"]
    assert torch.equal(tensors["tables.member"], torch.cat([was[:1], was[1:].flip(0)]))
    assert report["init_from"]["tables"]["member"]["from"] == "user"
    assert not report["init_from"]["dense"]


def test_the_longest_mapped_name_counts() -> None:
    names = {"towers": "heads", "towers.layers": "layers", "a": "b"}
    assert [renamed(name, names) for name in ("towers.x", "towers.layers.0", "a", "ab")] == [
        "heads.x",
        "layers.0",
        "b",
        "ab",
    ]
    pairing = pair_tensors(["a", "b", "towers.x"], ["b", "heads.x"], InitFromConfig(run="x", map=names), True, [])
    assert pairing.taken == {"b": "a", "heads.x": "towers.x"}
    assert pairing.left == ["b"]


def test_rows_are_appended_on_request(home: Path, tmp_path: Path) -> None:
    """Without vocabularies, ids that have only been added to keep their rows."""
    data = shutil.copytree(home / "data", tmp_path / "data")
    spec = yaml.safe_load((data / "dataset.yaml").read_text())
    spec["features"][1]["vocabulary_size"] = 230
    (data / "dataset.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    (data / "vocabularies.parquet").unlink()
    init = {"run": str(home / "old"), "skip": ["user", "tags"]}
    sentence = refused(write_config(tmp_path / "run.yaml", data, init_from=init))
    assert "tables.item has 200 rows, item of this run has 230" in sentence
    assert "grow: append" in sentence
    init["grow"] = "append"
    tensors, report = started(write_config(tmp_path / "run.yaml", data, init_from=init))
    assert torch.equal(tensors["tables.item"][:200], stored(home / "old")["tables.item"])
    assert report["init_from"]["tables"]["item"]["new_rows"] == 30


def test_vocabularies_that_were_written_over(home: Path, tmp_path: Path) -> None:
    """A data set prepared again in its folder is distinguished from that of the old run, whose file may be named."""
    data = shutil.copytree(home / "data", tmp_path / "data")
    train(write_config(tmp_path / "old.yaml", data), tmp_path / "old")
    shutil.copy(data / "vocabularies.parquet", tmp_path / "kept.parquet")
    values = old_values()
    write_vocabularies(data, {**values, "item": values["item"][::-1]})
    init = {"run": str(tmp_path / "old")}
    sentence = refused(write_config(tmp_path / "run.yaml", data, init_from=init))
    assert "vocabularies.parquet is no longer the file that" in sentence
    assert "init_from.vocabularies" in sentence
    init["vocabularies"] = str(tmp_path / "kept.parquet")
    tensors, _ = started(write_config(tmp_path / "run.yaml", data, init_from=init))
    was = stored(tmp_path / "old")["tables.item"]
    assert torch.equal(tensors["tables.item"], torch.cat([was[:1], was[1:].flip(0)]))


MODEL: dict[str, Any] = synthetic.config(Path("x"))["model"]  # type: ignore[assignment]
REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no run": ({"run": "nowhere"}, {}, "init_from: nowhere: there is no run here"),
    "no checkpoint": ({"checkpoint": "step_9"}, {}, "there is no checkpoint 'step_9'; there is best"),
    "no old name": ({"map": {"usr": "item"}}, {}, "init_from.map: {old}/checkpoints/step_00000002 has no table"),
    "no new name": (
        {"map": {"user": "usr"}},
        {},
        "init_from.map: this run has no table or parameter 'usr'; did you mean 'user'?",
    ),
    "no such table": ({"tables": ["usr"]}, {}, "has no 'usr'; did you mean 'user'?"),
    "nothing to skip": ({"skip": ["towrs"]}, {}, "init_from.skip: this run has no table or parameter 'towrs'"),
    "nothing taken": ({"tables": False, "dense": False}, {}, "nothing of"),
    "columns": (
        {},
        {"model": {**MODEL, "embeddings": {"dim": 4}}},
        "dense.interaction.cross.bias.0 has the size [34, 1], and interaction.cross.bias.0 of this run has [18, 1]",
    ),
    "columns of a table": (
        {"dense": False},
        {"model": {**MODEL, "embeddings": {"dim": 4}}},
        "tables.item has the size [200, 8], and item of this run has [200, 4]; set what makes this size as it was, or leave it "
        "out with init_from.skip: [item]",
    ),
    "another optimizer": (
        {"optimizer_state": True},
        {"optimizer": {"sparse": {"name": "adam"}}},
        "holds no table_state.item.first_moment, so that it is of another optimizer",
    ),
    "unbounded": (
        {},
        {"data": {"path": "", "batch_size": 64, "lanes": 4, "unbounded": {"item": 100}}},
        "tables.item has a vocabulary, and item of this run has unbounded ids",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_does_not_fit(home: Path, tmp_path: Path, what: str) -> None:
    init, changes, sentence = REFUSALS[what]
    data = home / "data"
    if what == "unbounded":
        data = shutil.copytree(data, tmp_path / "data")
        spec = yaml.safe_load((data / "dataset.yaml").read_text())
        del spec["features"][1]["vocabulary_size"]
        spec["features"][1]["unbounded"] = True
        (data / "dataset.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        changes = {"data": {**changes["data"], "path": str(data)}}
    path = write_config(tmp_path / "run.yaml", data, init_from={"run": str(home / "old"), **init}, **changes)
    assert sentence.replace("{old}", str(home / "old")) in refused(path)


@pytest.mark.parametrize("what", ["no run", "no checkpoint", "no old name", "no such table"])
def test_a_configuration_is_checked(home: Path, tmp_path: Path, what: str, call: Any) -> None:
    init, _, sentence = REFUSALS[what]
    path = write_config(tmp_path / "run.yaml", home / "data", init_from={"run": str(home / "old"), **init})
    code, said = call("config", "check", path)
    assert code == 2
    assert sentence.replace("{old}", str(home / "old")) in said
    path = write_config(tmp_path / "run.yaml", home / "data", init_from=str(home / "old"))
    assert call("config", "check", path)[0] == 0


def test_a_damaged_checkpoint_is_refused(home: Path, tmp_path: Path) -> None:
    old = shutil.copytree(home / "old", tmp_path / "old")
    file = next((old / "checkpoints").glob("step_*/rank_*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    init = {"run": str(old), "optimizer_state": True}
    path = write_config(tmp_path / "run.yaml", home / "data", init_from=init)
    assert "does not have its checksum" in refused(path)


def test_tasks_by_position_are_warned_of(home: Path, tmp_path: Path) -> None:
    tasks = [{"name": "buy"}, {"name": "click"}]
    path = write_config(tmp_path / "run.yaml", home / "data", init_from=str(home / "old"), tasks=tasks)
    done = command("train", path, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "init_from: the tasks were click, buy and are buy, click" in done.stderr


def test_resuming_goes_on_with_the_state_that_was_taken(home: Path, tmp_path: Path) -> None:
    """Adam's count of steps goes on behind that of the other run, also over a stop; the other run may be gone by then."""
    optimizer = {"sparse": {"name": "adam", "learning_rate": 0.01}}
    train(write_config(tmp_path / "old.yaml", home / "data", optimizer=optimizer), tmp_path / "old")
    init = {"run": str(tmp_path / "old"), "optimizer_state": True}

    def config(steps: int) -> Path:
        training = {"epochs": 1, "max_steps": steps, "log_every": 1, "checkpoint_every": 1}
        path = tmp_path / f"{steps}.yaml"
        return write_config(path, home / "data", optimizer=optimizer, init_from=init, training=training)

    train(config(4), tmp_path / "whole")
    train(config(2), tmp_path / "parts")
    shutil.rmtree(tmp_path / "old")
    train(config(4), tmp_path / "parts", resume=True)
    whole, parts = stored(tmp_path / "whole"), stored(tmp_path / "parts")
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    path = tmp_path / "other.yaml"
    path.write_text(config(4).read_text().replace("optimizer_state: true", "optimizer_state: false"))
    with pytest.raises(dlrm_mtl.UserError, match=r"init_from\.optimizer_state was true and is now false"):
        train(path, tmp_path / "parts", resume=True)


def test_unbounded_ids_come_with_their_rows(tmp_path: Path) -> None:
    """The map of ids is taken with the table; the old run's ids count as used before the new run's first step."""
    from tests.hashed import write_dataset

    data = write_dataset(tmp_path / "data")
    path = tmp_path / "old.yaml"
    content = yaml.safe_load(write_config(path, data).read_text())
    content["data"]["unbounded"] = {"user": 40, "item": 60}
    content["model"]["embeddings"].pop("tables")
    path.write_text(yaml.safe_dump(content))
    train(path, tmp_path / "old")
    content["init_from"] = str(tmp_path / "old")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    was = stored(tmp_path / "old")
    for processes in (1, 2):
        tensors, _ = started(tmp_path / "run.yaml", processes)
        for name in [name for name in was if name.startswith(("tables", "ids"))]:
            before = was[name]
            if name.endswith("last_used"):
                before = torch.where(was[name.replace("last_used", "ids")] != 0, before - 2, before)
                assert before.max() == 0
            assert torch.equal(tensors[name], before), name
    train(tmp_path / "run.yaml", tmp_path / "run")


def test_a_run_on_an_object_store(home: Path, tmp_path: Path, bucket: Any) -> None:
    train(home / "old.yaml", "s3://bucket/old")
    path = write_config(tmp_path / "run.yaml", home / "data", init_from="s3://bucket/old")
    with process_group():
        tensors, _ = begin(0, str(path))
    for name, tensor in stored(home / "old").items():
        if name.startswith(("tables", "dense.")):
            assert torch.equal(torch.as_tensor(tensors[name]), tensor), name


def test_state_of_elements_moves_with_its_rows(home: Path, tmp_path: Path) -> None:
    optimizer = {"sparse": {"name": "adagrad", "learning_rate": 0.01}}
    train(write_config(tmp_path / "old.yaml", home / "data", optimizer=optimizer), tmp_path / "old")
    init = {"run": str(tmp_path / "old"), "optimizer_state": True}
    path = write_config(
        tmp_path / "run.yaml", home / "grown", optimizer=optimizer, init_from=init, sharding=PLANS["columns"]
    )
    tensors, _ = started(path, 2)
    was = stored(tmp_path / "old")["table_state.item.accumulator"]
    place = {value: number + 1 for number, value in enumerate(old_values()["item"])}
    for number, value in enumerate(new_values()["item"]):
        before = was[place[value]] if value in place else torch.zeros(8)
        assert torch.equal(tensors["table_state.item.accumulator"][number + 1], before)
