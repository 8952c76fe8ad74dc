"""Data, runs and predictions on Google's object store: a real server that speaks its protocol, real processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.filesystems import locate
from dlrm_mtl.storage.output import output_file
from tests import commands, gcs, synthetic

TRAINING = {"epochs": 1, "log_every": 1, "checkpoint_every": 4, "evaluate_every": 8, "keep_checkpoints": 1}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[fs.FileSystem]:
    with gcs.object_store() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setitem(commands.ENVIRONMENT, "STORAGE_EMULATOR_HOST", url)
        yield locate("gs://bucket")[0]


def names(store: fs.FileSystem, folder: str) -> set[str]:
    found = store.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return {info.path[len(folder) + 1 :] for info in found if info.type == fs.FileType.File}


def test_output_is_complete_or_not_there(store: fs.FileSystem) -> None:
    def fail() -> None:
        with output_file("gs://bucket/out") as stream:
            stream.write(bytes(1 << 20))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(store, "bucket") == set()
    with output_file("gs://bucket/out") as stream:
        stream.write(b"all")
        assert store.get_file_info("bucket/out").type == fs.FileType.NotFound
    assert names(store, "bucket") == {"out"}
    with pytest.raises(UserError, match="gs://bucket/out: this file exists already"), output_file("gs://bucket/out"):
        pass


def test_a_run_from_data_to_predictions(
    store: fs.FileSystem, tmp_path: Path, call: Callable[..., tuple[int, str]]
) -> None:
    synthetic.write_dataset(tmp_path / "set", rows=800)
    fs.copy_files(str(tmp_path / "set"), "bucket/set", destination_filesystem=store)
    shutil.rmtree(tmp_path / "set")
    content = synthetic.config(Path("set"), training=TRAINING)
    content["data"] = {**content["data"], "path": "gs://bucket/set"}  # type: ignore[dict-item]
    config = commands.write_config(tmp_path / "run.yaml", content)
    run = "gs://bucket/runs/a"

    first = commands.run("train", config, "--output", run, processes=2)
    assert first.returncode == 0, first.stderr
    code, printed = call("train", config, "--output", run, "--resume", "--set", "training.epochs=2")
    assert code == 0, printed
    assert "resuming after step 13" in printed
    there = names(store, "bucket/runs/a")
    written = {"config.yaml", "contract.json", "plan.json", "metrics.jsonl", "history.jsonl", "results.json"}
    assert {name for name in there if "/" not in name} == written
    assert 1 <= len({name.split("/")[1] for name in there if name.startswith("checkpoints/step_")}) <= 2

    target = "gs://bucket/predictions/test.parquet"
    code, printed = call("predict", run, "--input", "gs://bucket/set/test", "--output", target, "--carry", "row")
    assert code == 0, printed
    assert pq.read_table(target[5:], filesystem=store).column_names == ["row", "click", "buy"]
    assert names(store, "bucket/predictions") == {"test.parquet"}
    code, printed = call("evaluate", "gs://bucket/runs/none")
    assert code == 2
    assert "error: gs://bucket/runs/none: there is no run here" in printed
    with store.open_output_stream("bucket/other/folder/file") as stream:
        stream.write(b"something")
    code, printed = call("train", config, "--output", "gs://bucket/other")
    assert code == 2
    assert "error: gs://bucket/other: this folder holds other files" in printed
    code, printed = call("train", config, "--output", "gs://nobucket/a")
    assert code == 2
    assert "error: gs://nobucket/a: this output folder cannot be written to (" in printed
    assert "google::cloud" not in printed
