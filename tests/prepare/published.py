"""Helpers for the adapters of published data sets: places of real rows, whole splits, equality of folders."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.reader import BatchLoader

SPLITS = ("train", "validation", "test")


def real_rows(repository: Path, name: str) -> Path:
    """The folder with real rows of a data set; the test is skipped where it is not."""
    folder = Path(os.environ.get("DLRM_MTL_RAW_DATA", repository.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"{folder}: the raw data are not there (set DLRM_MTL_RAW_DATA)")
    return folder


def split(folder: Path, name: str) -> list[dict[str, object]]:
    """All rows of a split."""
    return pq.read_table(folder / name).to_pylist()


def values(folder: Path) -> dict[tuple[str, int], str]:
    """The published value of every (feature, id)."""
    table: pa.Table = pq.read_table(folder / "vocabularies.parquet")
    return {(row["feature"], row["id"]): row["value"] for row in table.to_pylist()}


def differences(one: Path, other: Path) -> list[str]:
    """Names of the files below two folders that are not equal byte for byte."""
    names = {str(path.relative_to(top)) for top in (one, other) for path in top.rglob("*") if path.is_file()}
    _, different, missing = filecmp.cmpfiles(one, other, sorted(names), shallow=False)
    return different + missing


def read_through(folder: Path, tasks: list[str]) -> None:
    """Read every split as training does: ids and labels fit dataset.yaml, and the first task has a label in every row."""
    dataset = open_dataset(folder)
    config = DataConfig(path=str(folder), batch_size=64, evaluation_batch_size=64, lanes=4)
    for name in SPLITS:
        loader = BatchLoader(dataset.split(name), config, tasks)
        assert sum(batch.weights[:, 0].sum().item() for batch in loader.epoch(0)) == loader.rows
        assert loader.rows == dataset.spec.splits[name].rows
