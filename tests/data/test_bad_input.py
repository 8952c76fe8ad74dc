"""Every mistake in a data set is one sentence that names the place, the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from tests.data.reading import SPEC, loader, table, write

ROWS = 40
Column = pa.Array | None


def change(folder: Path, column: str, values: Column, statistics: bool = True) -> Path:
    """Replace a column of the second file (None: remove it) and return the file's path."""
    path = folder / "train" / "part-001.parquet"
    rows = pq.read_table(path)
    index = rows.schema.get_field_index(column)
    rows = rows.remove_column(index) if values is None else rows.set_column(index, column, values)
    pq.write_table(rows, path, row_group_size=10, write_statistics=statistics)
    return path


def sentence(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        action()
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set", [[ROWS], [ROWS]])
    return tmp_path / "set"


def ids(bad: int) -> pa.Array:
    return pa.array([*[1] * 24, bad, *[2] * 15], pa.int64())


def numbers(bad: float) -> pa.Array:
    return pa.array([*[1.0] * 24, bad, *[0.0] * 15])


@pytest.mark.parametrize("place", ["../elsewhere", "train/../../elsewhere", "/etc"])
def test_splits_lie_in_the_folder_of_their_data_set(folder: Path, place: str) -> None:
    (folder / "dataset.yaml").write_text(yaml.safe_dump({**SPEC, "splits": {"train": {"folder": place}}}))
    text = sentence(lambda: open_dataset(folder))
    assert f"splits.train.folder: {place!r} leads out of the data set's folder" in text


def test_missing_folder(tmp_path: Path) -> None:
    text = sentence(lambda: open_dataset(tmp_path / "nothing"))
    assert str(tmp_path / "nothing") in text
    assert "there is no such folder" in text


def test_missing_dataset_file(tmp_path: Path) -> None:
    assert "holds no dataset.yaml" in sentence(lambda: open_dataset(tmp_path))


def test_mistake_in_dataset_file(folder: Path) -> None:
    (folder / "dataset.yaml").write_text(yaml.safe_dump({**SPEC, "labls": []}))
    assert "did you mean 'labels'" in sentence(lambda: open_dataset(folder))


@pytest.mark.parametrize(
    ("feature", "part"),
    [
        ({"name": "x", "kind": "sparse"}, "needs either vocabulary_size or vocabulary"),
        ({"name": "x", "kind": "dense", "vocabulary_size": 4}, "is dense and has no vocabulary"),
        ({"name": "x", "kind": "sequence", "vocabulary": "usr"}, "did you mean 'user'"),
        ({"name": "user", "kind": "dense"}, "more than once"),
    ],
)
def test_feature_that_does_not_fit(folder: Path, feature: dict[str, Any], part: str) -> None:
    (folder / "dataset.yaml").write_text(yaml.safe_dump({**SPEC, "features": [*SPEC["features"], feature]}))
    assert part in sentence(lambda: open_dataset(folder))


def test_missing_split(folder: Path) -> None:
    assert "no split 'trian'; did you mean 'train'?" in sentence(lambda: open_dataset(folder).split("trian"))


def test_empty_folder(folder: Path) -> None:
    for path in (folder / "train").iterdir():
        path.unlink()
    (folder / "train" / "_SUCCESS").touch()
    assert f"{folder / 'train'}: holds no Parquet file" in sentence(lambda: loader(folder))


def test_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "set", [[], []])
    assert "hold no rows" in sentence(lambda: loader(tmp_path / "set"))


def test_missing_column(folder: Path) -> None:
    path = change(folder, "user", None)
    text = sentence(lambda: loader(folder))
    assert f"{path}: column 'user', which sparse feature 'user' reads, is missing" in text
    loader(folder, sparse=["row"], sequence=[])  # a column that is not read may be missing


@pytest.mark.parametrize(
    ("column", "values", "part"),
    [
        ("user", pa.array(["a"] * ROWS), "has type string where an integer or a list of integers"),
        ("tags", pa.array([[1.5]] * ROWS), "where an integer or a list of integers"),
        ("seen", pa.array([1] * ROWS), "has type int64 where a list of integers"),
        ("age", pa.array(["a"] * ROWS), "has type string where a number or a boolean"),
        ("click", pa.array([[1]] * ROWS), "where a number or a boolean"),
        ("tags", pa.array([1] * ROWS), "'tags' differs from that in"),
    ],
)
def test_column_of_the_wrong_type(folder: Path, column: str, values: Column, part: str) -> None:
    path = change(folder, column, values)
    text = sentence(lambda: loader(folder))
    assert str(path) in text
    assert repr(column) in text
    assert part in text


@pytest.mark.parametrize(
    ("column", "values", "part"),
    [
        ("user", ids(50), "holds the id 50, outside the vocabulary 0..49 of feature 'user'"),
        ("user", ids(-3), "holds the id -3, outside the vocabulary 0..49"),
        (
            "user",
            pa.array([*[1] * 24, 2**64 - 1, *[2] * 15], pa.uint64()),
            "holds the id 18446744073709551615, outside",
        ),
        ("tags", pa.array([[1], None] * 12 + [[2, 20]] * 16), "holds the id 20, outside the vocabulary 0..19"),
        ("seen", pa.array([[1], []] * 12 + [[2, 99]] * 16), "holds the id 99, outside the vocabulary 0..49"),
        ("click", ids(2), "holds 2, which is neither 0 nor 1"),
        ("buy", numbers(0.5), "holds 0.5, which is neither 0 nor 1"),
        ("buy", numbers(float("nan")), "holds nan, which is neither 0 nor 1"),
        ("seconds", numbers(float("nan")), "holds nan, which is no finite number"),
        ("age", numbers(float("inf")), "holds inf, which is no finite number"),
        ("age", numbers(float("nan")), "holds nan, which is no finite number"),
        ("count", numbers(1e300), "holds 1e+300, which is no finite number"),
        ("importance", numbers(-1.0), "holds -1.0; a weight must be"),
        ("importance", numbers(float("nan")), "holds nan; a weight must be"),
        ("importance", pa.array([*[1.0] * 24, None, *[0.0] * 15]), "holds null; a weight must be"),
    ],
)
@pytest.mark.parametrize("statistics", [True, False])
def test_values(folder: Path, column: str, values: Column, part: str, statistics: bool) -> None:
    path = change(folder, column, values, statistics)
    text = sentence(lambda: list(loader(folder, weight="importance").epoch(0)))
    assert part in text
    assert f"{path}: row group 2" in text
    assert repr(column) in text
    if not statistics:
        assert ", row 4:" in text


@pytest.mark.parametrize(("column", "bad"), [("user", 50), ("user", -3), ("click", 2)])
def test_footers_show_mistakes_before_training(folder: Path, column: str, bad: int) -> None:
    change(folder, column, ids(bad))
    assert f"{bad}" in sentence(lambda: loader(folder))


@pytest.mark.parametrize("type_", [pa.int8(), pa.int16()])
def test_a_negative_id_in_a_type_narrower_than_the_vocabulary(folder: Path, type_: pa.DataType) -> None:
    change(folder, "row", ids(-3).cast(type_), statistics=False)
    assert "holds the id -3, outside the vocabulary" in sentence(lambda: list(loader(folder).epoch(0)))


def test_unknown_ids_are_read_as_zero_and_counted(folder: Path) -> None:
    change(folder, "user", ids(50))
    change(folder, "seen", pa.array([[1, 77, -1]] * ROWS))
    reading = loader(folder, out_of_range="unknown", shuffle=False, lanes=1)
    seen = [batch.sparse.to_dict() for batch in reading.epoch(0)]
    assert reading.unknown_ids == {"user": 1, "seen": 2 * ROWS}
    users = np.concatenate([features["user"].values().numpy() for features in seen])
    assert users[-16] == 0
    assert seen[-1]["seen"].values().tolist() == [1, 0, 0] * 8


def test_not_parquet(folder: Path) -> None:
    path = folder / "train" / "part-001.parquet"
    path.write_text("user,click\n1,0\n")
    assert f"{path}: is text, not a Parquet file; make Parquet of a CSV file with `dlrm-mtl prepare table`" in sentence(
        lambda: loader(folder)
    )


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_truncated_file(folder: Path, keep: float) -> None:
    path = folder / "train" / "part-001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep < 1 else int(keep)])
    text = sentence(lambda: loader(folder))
    assert f"{path}: cannot be read as Parquet" in text
    assert "truncated" in text


def test_file_whose_middle_is_missing(folder: Path) -> None:
    path = folder / "train" / "part-001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4] + content[len(content) // 2 :])
    assert f"{path}" in sentence(lambda: list(loader(folder).epoch(0)))


def test_damaged_page(folder: Path) -> None:
    path = folder / "train" / "part-001.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(bytes(content))
    text = sentence(lambda: list(loader(folder).epoch(0)))
    assert f"{path}: row group 0: cannot be read as Parquet" in text


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"sparse": ["usr"]}, "data.sparse.0: feature 'usr' of data set small does not exist; did you mean 'user'?"),
        ({"dense": ["user"]}, "data.dense.0: feature 'user' of data set small is sparse"),
        ({"sparse": ["user", "user"]}, "named twice"),
        ({"labels": ["clik"]}, "there is no label 'clik'; did you mean 'click'?"),
        (
            {"weight": "importnce"},
            "column 'importnce', which data.weight reads, is missing; did you mean 'importance'?",
        ),
        ({"world_size": 3}, "4 lanes cannot be shared equally by 3 processes"),
    ],
)
def test_configuration_that_does_not_fit(folder: Path, options: dict[str, Any], part: str) -> None:
    assert part in sentence(lambda: loader(folder, **options))


def test_columns_of_nulls_and_other_types_are_welcome(tmp_path: Path) -> None:
    write(tmp_path / "set", [[ROWS], [ROWS]])
    rows = table(ROWS)
    changes = {
        "user": pa.nulls(ROWS),
        "tags": pa.array([[]] * ROWS, pa.list_(pa.null())),
        "seen": pa.array([[1, 2]] * ROWS, pa.list_(pa.uint64(), 2)),
        "age": rows.column("count").combine_chunks().cast(pa.decimal128(12, 2)),
        "count": pa.nulls(ROWS),
        "click": pa.nulls(ROWS),
        "buy": pa.array([True] * ROWS),
    }
    for column, values in changes.items():
        for index in range(2):
            path = tmp_path / "set" / "train" / f"part-{index:03d}.parquet"
            content = pq.read_table(path)
            pq.write_table(content.set_column(content.schema.get_field_index(column), column, values), path)
    for batch in loader(tmp_path / "set").epoch(0):
        features = batch.sparse.to_dict()
        assert features["user"].values().numel() == features["tags"].values().numel() == 0
        assert features["seen"].values().tolist() == [1, 2] * 8
        assert not batch.dense[:, 1].any()
        assert not batch.weights[:, 0].any()
        assert batch.labels[:, 1].all()
