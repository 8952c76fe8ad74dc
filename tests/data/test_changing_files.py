"""Files that change while they are read, and storage that fails now and then."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data import dataset
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import Dataset, open_dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.storage.output import output_file
from tests.data.reading import LABELS, loader, row_numbers, table, write


def reading(folder: Path) -> BatchLoader:
    """Blocks and lanes so small that most files are opened late."""
    return loader(folder, block_rows=10, prefetch=1, read_ahead=0, read_threads=1, shuffle=False, lanes=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set", [[10] * 3] * 5)
    return tmp_path / "set"


def sentence(batches: Iterator[Any]) -> str:
    with pytest.raises(UserError) as error:
        list(batches)
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_a_file_that_is_removed(folder: Path) -> None:
    batches = reading(folder).epoch(0)
    next(batches)
    path = folder / "train" / "part-004.parquet"
    path.unlink()
    assert f"{path}: the file has been removed since reading began" in sentence(batches)


def test_a_file_that_is_replaced(folder: Path) -> None:
    batches = reading(folder).epoch(0)
    next(batches)
    path = folder / "train" / "part-004.parquet"
    pq.write_table(table(30, seed=1), folder / "new", row_group_size=10)
    os.replace(folder / "new", path)
    assert f"{path}: the file has changed since reading began" in sentence(batches)


def test_a_file_that_is_cut_short_while_it_is_open(tmp_path: Path) -> None:
    write(tmp_path / "set", [[10] * 30])
    batches = reading(tmp_path / "set").epoch(0)
    next(batches)
    path = tmp_path / "set" / "train" / "part-000.parquet"
    os.truncate(path, 100)
    text = sentence(batches)
    assert f"{path}: row group " in text
    assert "the file has changed since reading began" in text


def test_a_file_that_is_still_being_written(folder: Path) -> None:
    path = folder / "train" / "part-005.parquet"
    with pq.ParquetWriter(path, table(10).schema) as writer:
        writer.write_table(table(10))
        with pytest.raises(UserError, match=f"{path}: cannot be read as Parquet .* not complete yet"):
            open_dataset(folder).split("train")


class Unsteady(LocalFileSystem):
    """Fails to open a file a given number of times."""

    failures = 0
    cachable = False

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        if Unsteady.failures:
            Unsteady.failures -= 1
            raise OSError("connection reset by peer")
        return super()._open(path, *arguments, **options)


@pytest.fixture
def unsteady(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dataset]:
    monkeypatch.setattr(dataset, "PAUSES", (0.0, 0.0, 0.0))
    filesystem = fs.PyFileSystem(fs.FSSpecHandler(Unsteady()))
    yield Dataset(filesystem, str(folder), open_dataset(folder).spec)
    Unsteady.failures = 0


def test_errors_that_pass_are_ridden_out(
    unsteady: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dlrm_mtl"), "propagate", True)
    Unsteady.failures = 2
    config = DataConfig(path="unused", batch_size=8, evaluation_batch_size=8, lanes=4, block_rows=10)
    made = BatchLoader(unsteady.split("train"), config, LABELS)
    Unsteady.failures = 3
    rows = [number for batch in made.epoch(0) for number in row_numbers(batch) if number is not None]
    assert sorted(rows) == list(range(150))
    # By identity: where the command line has run in this process, a record may be captured twice.
    said = {id(record): record.getMessage() for record in caplog.records}
    assert sum("connection reset by peer); trying again in 0 s" in text for text in said.values()) == 5


def test_errors_that_stay_end_in_a_sentence(unsteady: Dataset) -> None:
    config = DataConfig(path="unused", batch_size=8, evaluation_batch_size=8, lanes=4)
    made = BatchLoader(unsteady.split("train"), config, LABELS)
    Unsteady.failures = 1000
    assert "part-0" in (text := sentence(made.epoch(0)))
    assert "connection reset by peer" in text


def test_output_is_complete_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"

    def fail() -> None:
        with output_file(target) as stream:
            stream.write(b"half")
            assert not target.exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with output_file(target) as stream:
        stream.write(b"all")
    assert target.read_bytes() == b"all"
    with pytest.raises(UserError, match=f"{target}: this file exists already"), output_file(target):
        pass
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}: this folder cannot be written to"), output_file(target):
        pass
