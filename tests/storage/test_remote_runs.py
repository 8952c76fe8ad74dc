"""Runs whose folder is on an object store: a real server that speaks S3, real processes, real kills."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs

from dlrm_mtl.storage import remote_folder as mirror_module
from dlrm_mtl.storage import retry as retry_module
from tests import commands, s3, synthetic
from tests.commands import kill_tree, losses, start, write_config
from tests.embeddings.two_phase_model import whole
from tests.processes import run_processes

RUN = "bucket/runs/a"
TRAINING = {"epochs": 2, "log_every": 1, "checkpoint_every": 4, "evaluate_every": 12, "keep_checkpoints": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=1200)


@pytest.fixture(scope="module")
def config(dataset: Path) -> Path:
    return write_config(dataset / "run.yaml", synthetic.config(dataset, training=TRAINING))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder for temporary files; what follows works there, as on another machine."""

    def use(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setitem(commands.ENVIRONMENT, "TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        return folder

    return use


def staged(machine: Path) -> list[Path]:
    return list(machine.glob("dlrm-mtl-*/*"))


def pointer(bucket: fs.S3FileSystem, name: str) -> int:
    """The step of the checkpoint that ``name`` names, which must be complete."""
    step = s3.text(bucket, f"{RUN}/checkpoints/{name}")
    assert json.loads(s3.text(bucket, f"{RUN}/checkpoints/{step}/progress.json"))["step"] == int(step[5:])
    return int(step[5:])


def wait_for_checkpoint(bucket: fs.S3FileSystem, step: int, process: Any) -> None:
    latest, end = f"{RUN}/checkpoints/latest", time.monotonic() + 120
    while bucket.get_file_info(latest).type == fs.FileType.NotFound or s3.text(bucket, latest) < f"step_{step:08d}":
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


def metrics(bucket: fs.S3FileSystem, to: Path) -> Path:
    to.write_text(s3.text(bucket, f"{RUN}/metrics.jsonl"))
    return to


def test_a_run_is_killed_and_goes_on_elsewhere(
    bucket: fs.S3FileSystem,
    config: Path,
    dataset: Path,
    tmp_path: Path,
    machine: Callable[[str], Path],
    call: Callable[..., tuple[int, str]],
) -> None:
    machine("quiet")
    code, printed = call("train", config, "--output", tmp_path / "whole", "--set", "sharding.default=row_wise")
    assert code == 0, printed

    first = machine("first")
    process = start("train", config, "--output", f"s3://{RUN}", processes=2, log=tmp_path / "log")
    wait_for_checkpoint(bucket, 12, process)
    kill_tree(process)
    process.wait()
    assert staged(first)
    shutil.rmtree(first)
    # What a kill in the middle of an upload leaves.
    step = pointer(bucket, "latest")
    name, cut = f"{RUN}/checkpoints/step_{step:08d}", f"{RUN}/checkpoints/step_99999999"
    bucket.copy_file(f"{name}/rank_00000_0.safetensors", f"{cut}/rank_00000_0.safetensors")

    second = machine("second")
    code, printed = call("evaluate", f"s3://{RUN}", "--checkpoint", "step_99999999")
    assert code == 2
    assert f"error: s3://{RUN}/checkpoints: there is no checkpoint 'step_99999999'; there is " in printed
    code, printed = call("train", config, "--output", f"s3://{RUN}")
    assert code == 2
    assert f"error: s3://{RUN}: this folder already holds a run; continue it with --resume" in printed
    resumed = commands.run("train", config, "--output", f"s3://{RUN}", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming after step {step}" in resumed.stdout
    assert f"output in s3://{RUN}" in resumed.stdout
    assert not staged(second)

    ours, theirs = losses(metrics(bucket, tmp_path / "metrics")), losses(tmp_path / "whole" / "metrics.jsonl")
    assert ours.keys() == theirs.keys()
    for number, values in theirs.items():
        assert ours[number] == pytest.approx(values, rel=1e-5), f"step {number}"
    best, latest = pointer(bucket, "best"), pointer(bucket, "latest")
    assert latest == max(theirs)
    there = s3.files(bucket, RUN)
    written = {"config.yaml", "contract.json", "plan.json", "metrics.jsonl", "history.jsonl", "results.json"}
    assert {name for name in there if "/" not in name} == written
    assert len([name for name in there if name.startswith("tensorboard/")]) == 2
    assert {name for name in there if name.startswith("scores/")} == {"scores/test.json", "scores/validation.json"}
    steps = {name.split("/")[1] for name in there if name.startswith("checkpoints/step_")}
    assert {f"step_{best:08d}", f"step_{latest:08d}"} <= steps
    assert len(steps) <= 2
    assert "step_99999999" not in steps

    auc = json.loads(s3.text(bucket, f"{RUN}/results.json"))["test"]["click/auc"]
    code, printed = call("evaluate", f"s3://{RUN}")
    assert code == 0, printed
    assert f"{auc:.4f}" in printed
    target = "s3://bucket/predictions/test.parquet"
    code, printed = call("predict", f"s3://{RUN}", "--input", dataset / "test", "--output", target, "--carry", "row")
    assert code == 0, printed
    assert pq.read_table(target[5:], filesystem=bucket).column_names == ["row", "click", "buy"]
    code, printed = call("evaluate", f"s3://{RUN}", "--set", "data.path=/nowhere")
    assert code == 2
    assert not staged(second)


@pytest.mark.slow
def test_on_as_many_processes_a_run_goes_on_bit_identically(
    bucket: fs.S3FileSystem, config: Path, tmp_path: Path, machine: Callable[[str], Path]
) -> None:
    machine("quiet")
    done = commands.run("train", config, "--output", tmp_path / "whole", processes=2)
    assert done.returncode == 0, done.stderr
    for name, step in (("first", 3), ("second", 15)):
        machine(name)
        process = start(
            "train", config, "--output", f"s3://{RUN}", "--resume", processes=2, log=tmp_path / f"{name}.log"
        )
        wait_for_checkpoint(bucket, step, process)
        kill_tree(process)
        process.wait()
    machine("third")
    resumed = commands.run("train", config, "--output", f"s3://{RUN}", "--resume", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(metrics(bucket, tmp_path / "metrics")) == losses(tmp_path / "whole" / "metrics.jsonl")
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert json.loads(s3.text(bucket, f"{RUN}/results.json")) == results


@pytest.fixture
def guarded(bucket: fs.S3FileSystem) -> Iterator[None]:
    """From now on the store knows nobody."""

    def allow(requests: str) -> None:
        address = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        urlopen(Request(address, method="POST", data=requests.encode(), headers={"Content-Type": "text/plain"}))

    allow("0")
    yield
    allow("inf")


def test_a_place_that_cannot_be_used_is_refused_before_training(
    bucket: fs.S3FileSystem, config: Path, call: Callable[..., tuple[int, str]], machine: Callable[[str], Path]
) -> None:
    here = machine("here")
    code, printed = call("train", config, "--output", "s3://nobucket/a")
    assert code == 2
    assert "error: s3://nobucket/a: this output folder cannot be written to (" in printed
    assert "NO_SUCH_BUCKET" in printed
    assert "Sharding plan" not in printed
    code, printed = call("evaluate", "s3://nobucket/a")
    assert code == 2
    assert "error: s3://nobucket/a: there is no run here" in printed
    with bucket.open_output_stream("bucket/other/file") as stream:
        stream.write(b"something")
    code, printed = call("train", config, "--output", "s3://bucket/other", "--resume")
    assert code == 2
    assert "error: s3://bucket/other: this folder holds other files" in printed
    assert s3.files(bucket, "bucket") == ["other/file"]
    code, printed = call("compare", "s3://bucket/other")
    assert code == 2
    assert "error: s3://bucket/other: compare reads local folders" in printed
    assert not staged(here)


@pytest.mark.usefixtures("guarded")
def test_without_permission_nothing_begins(config: Path, call: Callable[..., tuple[int, str]]) -> None:
    for command in (["train", config, "--output", "s3://bucket/a"], ["evaluate", "s3://bucket/a"]):
        code, printed = call(*command)
        assert code == 2
        assert "error: s3://bucket/a" in printed
        assert "check the" in printed
        assert "credentials" in printed
        assert "trying again" not in printed
        assert "Sharding plan" not in printed


def host(rank: int, data: Path, environment: dict[str, str], temporary: Path, failing: bool) -> dict[str, Any]:
    """A process that is alone on its host: save, or load, a checkpoint on the store; what is in the model."""
    import torch.distributed as dist

    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.core.errors import UserError
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.run.staging import run_folder
    from dlrm_mtl.training.build import build_model, build_optimizers
    from dlrm_mtl.training.tensors import RunTensors

    os.environ.update(environment, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    tempfile.tempdir = str(temporary)
    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    writing = process.world_size > 1
    config = RunConfig.model_validate(synthetic.config(data, seed=3 if writing else 4))
    model = build_model(config, open_dataset(str(data)).spec, process)
    optimizers = build_optimizers(config, model, 4)
    result: dict[str, Any] = {"sentence": None}
    with run_folder(f"s3://{RUN}") as folder:
        checkpoints = Checkpoints(folder.store, 1)
        if writing:
            optimizers.allocate()
            checkpoints.save(RunTensors(model, optimizers), RunState(step=1))
            assert not list(folder.checkpoints.iterdir())
            mirror_module.PAUSES = (0.0,)
            if failing and rank == 1:  # the second host's credentials have run out
                folder.store.filesystem = fs.S3FileSystem(
                    endpoint_override=environment["AWS_ENDPOINT_URL"],
                    access_key="a",
                    secret_key="b",
                    region="us-east-1",
                )
                folder.store.root = "nobucket/runs/a"
            try:
                checkpoints.save(RunTensors(model, optimizers), RunState(step=2))
            except UserError as error:
                result["sentence"] = str(error)
        else:
            assert checkpoints.load("latest", RunTensors(model, optimizers)).step == (1 if failing else 2)
    tables = {name: whole(value) for name, value in model.table_weights().items()}
    result["model"] = {**tables, **{name: value.clone() for name, value in model.dense_weights().items()}}
    return result


@pytest.mark.parametrize("failing", [False, True])
def test_hosts_that_share_no_folder(bucket: fs.S3FileSystem, dataset: Path, tmp_path: Path, failing: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    one, other = run_processes(2, host, dataset, environment, tmp_path, failing)
    if failing:
        assert one["sentence"] == other["sentence"]
        assert one["sentence"].startswith(f"s3://{RUN}/checkpoints/step_00000002: cannot be written (")
        assert pointer(bucket, "latest") == 1
    else:
        assert one["sentence"] is None
        assert pointer(bucket, "latest") == 2
        assert not [name for name in s3.files(bucket, RUN) if "step_00000001" in name]
    (loaded,) = run_processes(1, host, dataset, environment, tmp_path, failing)
    for name, value in one["model"].items():
        if value is not None:
            assert torch.equal(loaded["model"][name], value), name
    assert not staged(tmp_path)


def test_an_interruption_of_the_store_is_waited_for(
    bucket: fs.S3FileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = mirror_module.RemoteStore("s3://bucket/a", bucket, "bucket/a", tmp_path)
    (tmp_path / "metrics.jsonl").write_text("one\n")
    run.publish()
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            bucket.create_dir("bucket")

    monkeypatch.setattr(retry_module.time, "sleep", pause)
    bucket.delete_dir_contents("bucket")
    urlopen(Request(f"{os.environ['AWS_ENDPOINT_URL']}/bucket", method="DELETE"))
    (tmp_path / "metrics.jsonl").write_text("one\ntwo\n")
    (tmp_path / "results.json").write_text("{}")
    run.publish()
    assert pauses == [1, 2, 4]
    assert max(said.count("s3://bucket/a: cannot be written (") for said in (capfd.readouterr().err, caplog.text)) == 3
    assert s3.files(bucket, "bucket/a") == ["metrics.jsonl", "results.json"]
    assert s3.text(bucket, "bucket/a/metrics.jsonl") == "one\ntwo\n"


def test_folders_of_dead_processes_are_removed(machine: Callable[[str], Path]) -> None:
    from dlrm_mtl.run.staging import _new_folder

    here = machine("here")
    (dead, its_lock), (alive, lock) = _new_folder(), _new_folder()
    (dead / "file").write_text("a large checkpoint")
    os.close(its_lock)
    new, new_lock = _new_folder()
    assert set(staged(here)) == {alive, new}
    for each in (lock, new_lock):
        os.close(each)
