"""Data and predictions on an object store: a real server that speaks S3."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.growing import Consumed, next_round
from dlrm_mtl.storage import output
from dlrm_mtl.storage.output import output_file
from tests import commands
from tests.data.reading import loader, row_numbers, table, write
from tests.s3 import files, upload
from tests.synthetic import config, write_dataset


def test_reading(bucket: fs.S3FileSystem, tmp_path: Path) -> None:
    write(tmp_path / "set", [[30, 30], [], [17]])
    upload(tmp_path / "set", bucket, "bucket/data/set")
    there = loader("s3://bucket/data/set", seed=3, block_rows=20)  # type: ignore[arg-type]
    here = loader(tmp_path / "set", seed=3, block_rows=20)
    assert [row_numbers(batch) for batch in there.epoch(1)] == [row_numbers(batch) for batch in here.epoch(1)]
    with pytest.raises(UserError, match=r"s3://bucket/nothing: there is no such folder"):
        open_dataset("s3://bucket/nothing")
    bucket.delete_file("bucket/data/set/train/part-002.parquet")
    with pytest.raises(UserError, match=r"part-002\.parquet: the file has been removed since reading began"):
        list(there.epoch(2))


def test_data_that_grows(bucket: fs.S3FileSystem, tmp_path: Path) -> None:
    write(tmp_path / "set", [[30]])
    upload(tmp_path / "set", bucket, "bucket/set")
    consumed = Consumed()
    assert next_round(open_dataset("s3://bucket/set"), "train", consumed).split is not None
    consumed.finish_round()
    pq.write_table(table(9, first=30), "bucket/set/train/part-001.parquet", filesystem=bucket)
    found = next_round(open_dataset("s3://bucket/set"), "train", consumed)
    assert found.split is not None
    assert found.split.rows == 9


def test_output_is_complete_or_not_there(bucket: fs.S3FileSystem) -> None:
    def fail() -> None:
        with output_file("s3://bucket/out") as stream:
            stream.write(bytes(6 << 20))  # more than one part of an upload
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert bucket.get_file_info(fs.FileSelector("bucket")) == []
    with output_file("s3://bucket/out") as stream:
        stream.write(b"all")
        assert bucket.get_file_info("bucket/out").type == fs.FileType.NotFound
    assert [info.path for info in bucket.get_file_info(fs.FileSelector("bucket"))] == ["bucket/out"]
    with pytest.raises(UserError, match="s3://bucket/out: this file exists already"), output_file("s3://bucket/out"):
        pass
    with pytest.raises(UserError, match="s3://nobucket/out: cannot be written"), output_file("s3://nobucket/out"):
        pass


def test_what_is_too_large_for_s3_to_rename(bucket: fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "COPIED", 1 << 20)
    monkeypatch.setattr(output, "PIECE", 3 << 20)
    content = bytes(range(256)) * (12 << 12)  # 12 MiB, more than one part of an upload
    with output_file("s3://bucket/out") as stream:
        stream.write(content)
    assert files(bucket, "bucket") == ["out"]
    with bucket.open_input_stream("bucket/out") as there:
        assert there.read() == content

    with bucket.open_output_stream("bucket/other.tmp") as stream:
        stream.write(content)
    with pytest.raises(OSError, match="12,582,912 bytes of 12,582,913 were copied"):
        output._rename(bucket, "bucket/other.tmp", "bucket/other", len(content) + 1)
    assert files(bucket, "bucket") == ["other.tmp", "out"]


def test_training_and_predicting_from_the_command_line(bucket: fs.S3FileSystem, tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", rows=200)
    upload(tmp_path / "set", bucket, "bucket/set")
    shutil.rmtree(tmp_path / "set")
    content = config(Path("set"), training={"epochs": 1})
    content["data"] = {**content["data"], "path": "s3://bucket/set"}  # type: ignore[dict-item]
    file = commands.write_config(tmp_path / "run.yaml", content)
    done = commands.run("train", file, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    source, target = "s3://bucket/set/test", "s3://bucket/predictions/test.parquet"
    done = commands.run("predict", tmp_path / "run", "--input", source, "--output", target, "--carry", "row")
    assert done.returncode == 0, done.stderr
    found = pq.read_table("bucket/predictions/test.parquet", filesystem=bucket)
    assert found.column_names == ["row", "click", "buy"]
    assert found.column("row").to_pylist() == list(range(50))
    assert [info.path for info in bucket.get_file_info(fs.FileSelector("bucket/predictions"))] == [
        "bucket/predictions/test.parquet"
    ]
