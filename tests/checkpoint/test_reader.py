"""Checkpoints are loaded from a store by the bytes that each process needs: a real server, whose bytes are counted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyarrow import fs
from torch import Tensor

from dlrm_mtl.checkpoint import format, reader, writer
from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.storage import remote_folder as mirror_module
from dlrm_mtl.storage import run_store
from dlrm_mtl.storage.remote_folder import RemoteStore
from dlrm_mtl.storage.run_store import LocalStore, RunStore
from tests import s3, synthetic
from tests.embeddings.two_phase_model import whole
from tests.processes import run_processes
from tests.relay import relays

RUN = "bucket/runs/a"
ITEMS = 400_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic data set, with room for many more items."""
    folder = synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=300)
    spec = yaml.safe_load((folder / "dataset.yaml").read_text())
    spec["features"][1]["vocabulary_size"] = ITEMS
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return folder


def visit(
    rank: int,
    data: Path,
    environments: list[dict[str, str]],
    temporary: Path,
    plan: str,
    load: bool,
    sizes: dict[str, int],
) -> dict[str, Any]:
    """A process that is alone on its host: save, or load, a checkpoint on the store; the sizes of what it has of it."""
    import tempfile

    import torch.distributed as dist

    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.run.staging import run_folder
    from dlrm_mtl.training.build import build_model, build_optimizers
    from dlrm_mtl.training.tensors import RunTensors

    os.environ.update(environments[rank], LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    tempfile.tempdir = str(temporary)
    for name, size in sizes.items():
        for module in (writer, reader, format, run_store):
            if hasattr(module, name):
                setattr(module, name, size)
    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    sharding = {"default": plan, "processes_per_host": 2} if plan == "grid_shard" else {"default": plan}
    config = RunConfig.model_validate(synthetic.config(data, seed=4 if load else 3, sharding=sharding))
    model = build_model(config, open_dataset(str(data)).spec, process)
    optimizers = build_optimizers(config, model, 4)
    with run_folder(f"s3://{RUN}") as folder:
        checkpoints = Checkpoints(folder.store, 1)
        if load:
            assert checkpoints.load("latest", RunTensors(model, optimizers)).step == 1
        else:
            optimizers.allocate()
            for local in optimizers.sparse.tables:
                local.states["accumulator"].uniform_()
            checkpoints.save(RunTensors(model, optimizers), RunState(step=1))
        staged = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())
    states = {
        f"{table}/{key}": value for table, state in optimizers.table_state().items() for key, value in state.items()
    }
    tables = {**model.table_weights(), **states}
    dense = {**model.dense_weights()}
    for name, state in optimizers.dense_state().items():
        dense.update({f"{name}/{key}": value for key, value in state.items()})
    return {
        "model": {name: whole(value) for name, value in tables.items()}
        | {name: value.clone() for name, value in dense.items()},
        "dense": sum(value.nbytes for value in dense.values()),
        "staged": staged,
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("before", "processes"), [("row_wise", 4), ("table_wise", 1), ("column_wise", 4)])
def test_a_process_reads_its_part(
    bucket: fs.S3FileSystem, dataset: Path, tmp_path: Path, before: str, processes: int
) -> None:
    environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    written = run_processes(processes, visit, dataset, [environment] * 4, tmp_path, before, False, {})[0]
    tables = ITEMS * (8 + 1) * 4  # weights of 8 numbers and an accumulator for every row
    total = sum(info.size or 0 for info in bucket.get_file_info(fs.FileSelector(RUN, recursive=True)))
    assert total > tables
    with relays(environment["AWS_ENDPOINT_URL"], 4) as doors:
        through = [{**environment, "AWS_ENDPOINT_URL": door.url} for door in doors]
        read = run_processes(4, visit, dataset, through, tmp_path, "row_wise", True, {})
        counts = [door.sent for door in doors]
    print(f"tables {tables:,}, dense {read[0]['dense']:,}, checkpoint {total:,} bytes; sent to each process: {counts}")
    assert same(read[0]["model"], written["model"])
    for part, count in zip(read, counts, strict=True):
        assert tables / 4 < count < 1.1 * tables / 4 + 2 * part["dense"] + 200_000
        assert part["staged"] < 1000


def test_any_plan_loads_under_any_other(bucket: fs.S3FileSystem, tmp_path: Path) -> None:
    """With small pieces and files, so that small tables are cut as large ones are."""
    data = synthetic.write_dataset(tmp_path / "data", rows=300)
    environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    arguments = [data, [environment] * 4, tmp_path]
    written = run_processes(4, visit, *arguments, "grid_shard", False, {"FILE_BYTES": 3000})[0]["model"]
    names = {name.split("/")[-1] for name in s3.files(bucket, RUN)}
    assert {f"rank_{name}.safetensors" for name in ("00000_0", "00000_1", "00003_1")} <= names
    small = {"PIECE": 700, "GAP": 30, "GROUPS": 3}
    for plan, processes in (("row_wise", 3), ("column_wise", 4), ("table_wise", 1)):
        read = run_processes(processes, visit, *arguments, plan, True, small)[0]["model"]
        assert same(read, written), plan


class Tensors:
    """Tensors that every process holds whole, as a thing to save."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.content = tensors

    def prepare_load(self) -> None: ...

    def tensors(self) -> dict[str, Any]:
        return self.content

    def loaded(self, state: RunState) -> None: ...


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    if request.param == "local":
        return LocalStore(tmp_path)
    return RemoteStore("s3://bucket/a", request.getfixturevalue("bucket"), "bucket/a", tmp_path)


def test_tensors_of_all_kinds(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, Any] = {
        "matrix": torch.randn(500, 30),
        "columns_first": torch.randn(30, 500).t(),
        "bfloat16": torch.randn(300, 7).bfloat16(),
        "bool": torch.rand(5000) < 0.5,
        "wide": torch.randn(2, 4000),
        "deep": torch.randn(20, 3, 5),
        "number": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "long": torch.arange(4000),
    }
    monkeypatch.setattr(format, "BLOCK", 256)
    monkeypatch.setattr(reader, "BLOCK", 256)
    monkeypatch.setattr(run_store, "PIECE", 1001)
    monkeypatch.setattr(run_store, "GAP", 30)
    monkeypatch.setattr(writer, "PIECE", 512)
    with process_group():
        checkpoints = Checkpoints(store)
        checkpoints.save(Tensors({"a": state}), RunState(step=4))
        found = {key: torch.zeros_like(value) for key, value in state.items()}
        assert checkpoints.load("latest", Tensors({"a": found})) == RunState(step=4)
        checkpoints.verify("step_00000004")
    for key, value in state.items():
        assert torch.equal(found[key], value), key


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    """The layout of safetensors, read by its definition: a length, a header, and numbers at its offsets."""
    matrix = torch.randn(50, 3)
    with process_group():
        Checkpoints(LocalStore(tmp_path)).save(Tensors({"a": {"matrix": matrix}}), RunState(step=4))
    content = (tmp_path / "checkpoints/step_00000004/rank_00000_0.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first, last = header["a.matrix"]["data_offsets"]
    assert header["a.matrix"] == {"dtype": "F32", "shape": [50, 3], "data_offsets": [0, 600]}
    assert content[8 + length + first : 8 + length + last] == matrix.numpy().tobytes()
    assert header["__metadata__"]["step"] == "4"
    assert max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__") == (
        len(content) - 8 - length
    )


def test_what_is_cut_short_or_gone_is_one_sentence(
    bucket: fs.S3FileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(mirror_module, "PAUSES", (0.0, 0.0))
    store = RemoteStore("s3://bucket", bucket, "bucket", tmp_path)
    place, file = "bucket/checkpoints/step_00000001", "rank_00000_0.safetensors"

    def load() -> str:
        with process_group(), pytest.raises(UserError) as raised:
            Checkpoints(store).load("latest", Tensors({"matrix": torch.zeros(1000, 1000)}))
        return str(raised.value)

    def read_on() -> str:
        with pytest.raises(UserError) as raised:
            opened.reader.verify()
        return str(raised.value)

    with process_group():
        Checkpoints(store).save(Tensors({"matrix": torch.randn(1000, 1000)}), RunState(step=1))
        opened = Checkpoints(store).open("step_00000001")
    with bucket.open_input_file(f"{place}/{file}") as source:
        content = source.read()
    with bucket.open_output_stream(f"{place}/{file}") as target:
        target.write(content[:3_000_000])
    capfd.readouterr()
    assert "has 3,000,000 bytes instead of 4,0" in load()
    assert read_on().startswith(f"s3://{place}: cannot be read ({file} ends after 3,000,000 bytes, before 4,0")
    assert max(said.count("trying again in 0 s") for said in (capfd.readouterr().err, caplog.text)) == 2
    bucket.delete_file(f"{place}/{file}")
    assert f"s3://{place}/{file}: is missing" in load()
    assert read_on().startswith(f"s3://{place}: has been removed meanwhile (")
    bucket.delete_file(f"{place}/index.json")
    assert f"s3://{place}/index.json: is missing" in load()
