"""Reading in the order of the files, for prediction."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.row_reader import iterate_rows
from tests.data.reading import LABELS, actual, expected, row_numbers, write

CONFIG = DataConfig(path="unused", batch_size=8, evaluation_batch_size=8)


def test_order_and_columns_are_kept(tmp_path: Path) -> None:
    rows = write(tmp_path / "set", [[5, 20, 1], [], [3, 3, 3]])
    spec = open_dataset(tmp_path / "set").spec
    reader = iterate_rows(tmp_path / "set" / "train", spec, CONFIG, 8, carry=["importance", "row"], labels=LABELS)
    parts = list(reader)
    assert reader.rows == rows.num_rows
    assert [batch.size for batch, _ in parts] == [8, 8, 8, 2, 8, 1]
    assert [row for batch, _ in parts for row in row_numbers(batch)] == list(range(rows.num_rows))
    assert [row for _, carried in parts for row in carried.column("row").to_pylist()] == list(range(rows.num_rows))
    assert parts[0][1].column_names == ["importance", "row"]
    assert parts[0][1].schema == reader.carried_schema
    for number, found in enumerate(row for batch, _ in parts for row in actual(batch)):
        wanted = expected(rows, number)
        assert found == {key: pytest.approx(value, rel=1e-5, abs=1e-6) for key, value in wanted.items()}


def test_one_file_without_labels_and_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "set", [[10], []])
    spec = open_dataset(tmp_path / "set").spec
    first = tmp_path / "set" / "train" / "part-000.parquet"
    pq.write_table(pq.read_table(first).drop_columns(["click", "importance"]), first)
    ((batch, carried),) = iterate_rows(str(first), spec, CONFIG, 100, labels=["buy", "click"])
    assert (batch.size, carried.num_columns) == (10, 0)
    assert batch.weights[:, 0].all()
    assert not batch.weights[:, 1].any()
    assert list(iterate_rows(tmp_path / "set" / "train" / "part-001.parquet", spec, CONFIG, 100)) == []


def test_carried_column_that_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "set", [[10]])
    spec = open_dataset(tmp_path / "set").spec
    with pytest.raises(UserError, match=r"column 'rwo', to be carried over, is missing; did you mean 'row'\?"):
        iterate_rows(tmp_path / "set" / "train", spec, CONFIG, 8, carry=["rwo"])
    with pytest.raises(UserError, match="there is no such file or folder"):
        iterate_rows(tmp_path / "nothing.parquet", spec, CONFIG, 8)
