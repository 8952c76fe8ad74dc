"""Parquet of other writers: nullability, dotted names, columns without a type, folders that are columns."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.data.row_reader import iterate_rows
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.data.statistics import write_spec

SPEC = DatasetSpec(
    name="x",
    splits={"train": SplitSpec(folder="train")},
    features=[
        FeatureSpec(name="user", kind="sparse", vocabulary_size=50),
        FeatureSpec(name="seen", kind="sequence", vocabulary_size=50),
        FeatureSpec(name="price", kind="dense"),
    ],
    labels=[LabelSpec(name="click")],
)
CONFIG = DataConfig(path="unused", batch_size=4, evaluation_batch_size=4, lanes=1)


def rows(count: int, first: int = 0) -> pa.Table:
    numbers = range(first, first + count)
    return pa.table(
        {
            "user": list(numbers),
            "seen": [[number] for number in numbers],
            "price": [float(number) for number in numbers],
            "click": [number % 2 for number in numbers],
            "row": list(numbers),
        }
    )


def written(folder: Path, *tables: pa.Table) -> Path:
    (folder / "train").mkdir(parents=True)
    for position, table in enumerate(tables):
        pq.write_table(table, folder / "train" / f"part-{position}.parquet")
    write_spec(folder / "dataset.yaml", SPEC)
    return folder


def users(folder: Path) -> list[int]:
    loader = BatchLoader(open_dataset(folder).split("train"), CONFIG, ["click"])
    return sorted(int(value) for batch in loader.epoch(0) for value in batch.sparse["user"].values())


def not_null(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([field.with_nullable(False) for field in table.schema]))


def without_type(table: pa.Table, name: str) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.nulls(table.num_rows))


@pytest.mark.parametrize("order", [1, -1])
def test_nullability_plays_no_role(tmp_path: Path, order: int) -> None:
    tables = [rows(7), not_null(rows(6, 7))][::order]
    assert users(written(tmp_path / "a", *tables)) == list(range(13))
    tables[1 if order == 1 else 0] = rows(6, 7)
    other = rows(3).set_column(4, "row", pa.array([None, 1, 2]))
    folder = written(tmp_path / "b", *[not_null(rows(2)), other][::order])
    carried = [table for _, table in iterate_rows(folder / "train", SPEC, CONFIG, 2, ["row"])]
    assert sum(table.num_rows for table in carried) == 5
    assert pa.concat_tables(carried)["row"].null_count == 1


@pytest.mark.parametrize("name", ["item.shops", "user.a", "user.b.list.element", "a.user"])
def test_dots_in_names_of_other_columns(tmp_path: Path, name: str) -> None:
    for position, extra in enumerate([pa.array([[1000]] * 5), pa.array([1000] * 5), pa.array([{"user": 1000}] * 5)]):
        table = rows(5)
        for place, made in enumerate([table.append_column(name, extra), table.add_column(0, name, extra)]):
            assert users(written(tmp_path / f"{position}{place}", made)) == list(range(5))


@pytest.mark.parametrize("name", ["user", "seen", "price", "click"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_column_without_a_type_in_one_part(tmp_path: Path, name: str, order: int) -> None:
    folder = written(tmp_path / "a", *[rows(4), without_type(rows(3, 4), name)][::order])
    assert users(folder) == list(range(4 if name == "user" else 7))


@pytest.mark.parametrize("name", ["user", "seen", "price", "click", "row"])
def test_a_column_twice_is_one_sentence(tmp_path: Path, name: str) -> None:
    table = rows(5)
    folder = written(tmp_path / "a", pa.table([*table.columns, table[name]], names=[*table.column_names, name]))
    with pytest.raises(UserError, match=f"part-0.parquet: there are 2 columns '{name}'; rename or remove one"):
        list(iterate_rows(folder / "train", SPEC, CONFIG, 2, ["row"], ["click"]))


def test_kinds_that_differ_are_named_and_folders_are_no_columns(tmp_path: Path) -> None:
    table = rows(3)
    folder = written(tmp_path / "a", table, table.set_column(0, "user", table["seen"]))
    with pytest.raises(UserError, match=r"\(list<element: int64> here, int64 there\)"):
        users(folder)
    (tmp_path / "b" / "train" / "user=3").mkdir(parents=True)
    write_spec(tmp_path / "b" / "dataset.yaml", SPEC)
    pq.write_table(table.drop_columns(["user"]), tmp_path / "b" / "train" / "user=3" / "x.parquet")
    with pytest.raises(UserError, match="the folder user=3 is not read as a column: write it into the files"):
        users(tmp_path / "b")
