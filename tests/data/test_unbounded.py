"""Features whose ids have no bound: reading, describing, and what users get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.row_reader import iterate_rows
from dlrm_mtl.data.spec import FeatureSpec
from dlrm_mtl.reports.dataset_profile import profile_dataset
from dlrm_mtl.run.costs import count_costs
from tests import commands, hashed

LEAST, MOST = -(2**63), 2**63 - 1


def write(folder: Path, columns: dict[str, pa.Array]) -> Path:
    """A data set with unbounded users and their friends, bounded items."""
    (folder / "train").mkdir(parents=True)
    rows = len(next(iter(columns.values())))
    table = {"item": np.ones(rows, np.int32), "click": np.zeros(rows, np.int8)} | columns
    pq.write_table(pa.table(table), folder / "train" / "part-0.parquet", row_group_size=3)
    spec: dict[str, Any] = {
        "name": "small",
        "splits": {"train": {"folder": "train"}},
        "features": [
            {"name": "user", "kind": "sparse", "unbounded": True},
            {"name": "friends", "kind": "sequence", "vocabulary": "user"},
            {"name": "item", "kind": "sparse", "vocabulary_size": 5},
        ],
        "labels": [{"name": "click"}],
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return folder


def read(folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of users and friends, row by row."""
    config = DataConfig(path=str(folder), unbounded={"user": 100})  # type: ignore[dict-item]
    reader = iterate_rows(folder / "train", open_dataset(str(folder)).spec, config, 4)
    users: list[list[int]] = []
    friends: list[list[int]] = []
    for batch, _ in reader:
        for name, lists in (("user", users), ("friends", friends)):
            lists.extend(row.tolist() for row in batch.sparse[name].to_dense())
    assert reader.unknown_ids == {}
    return users, friends


def test_any_integer_is_read(tmp_path: Path) -> None:
    users = [MOST, -5, None, 0, 7, LEAST + 1, -2, 1 << 40]
    friends = [[MOST, -7], None, [], [0, -2, 3], [None, 5], [LEAST + 1], [1], [2]]
    columns = {"user": pa.array(users, pa.int64()), "friends": pa.array(friends, pa.list_(pa.int64()))}
    found = read(write(tmp_path / "data", columns))
    assert found[0] == [[] if user is None else [user] for user in users]
    assert found[1] == [[friend for friend in row or [] if friend is not None] for row in friends]


def test_the_one_id_that_stands_for_nulls_inside(tmp_path: Path) -> None:
    columns = {
        "user": pa.array([-1, None, 3, -1], pa.int64()),
        "friends": pa.array([[-1, 2], None, [], [-1]], pa.list_(pa.int64())),
    }
    users, friends = read(write(tmp_path / "data", columns))
    assert users == [[LEAST], [], [3], [LEAST]]
    assert friends == [[LEAST, 2], [], [], [LEAST]]


def test_unsigned_hashes_and_narrow_types(tmp_path: Path) -> None:
    columns = {
        "user": pa.array([2**64 - 2, 2**63, 1, None], pa.uint64()),
        "friends": pa.array([[-3], [255], [], None], pa.list_(pa.int16())),
    }
    users, friends = read(write(tmp_path / "data", columns))
    assert users == [[-2], [LEAST], [1], []]  # the same 64 bits
    assert friends == [[-3], [255], [], []]


@pytest.mark.parametrize(
    "more", [{}, {"vocabulary_size": 3, "unbounded": True}, {"vocabulary": "item", "unbounded": True}]
)
def test_a_feature_has_one_kind_of_vocabulary(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"needs either vocabulary_size or vocabulary .*, or unbounded: true"):
        FeatureSpec(name="user", kind="sparse", **more)


def test_dense_features_have_none() -> None:
    with pytest.raises(ValidationError, match="is dense and has no vocabulary"):
        FeatureSpec(name="age", kind="dense", unbounded=True)


@pytest.mark.parametrize(
    ("unbounded", "parts"),
    [
        ({}, ["data.unbounded: feature 'user'", "data.unbounded.user=1000000"]),
        ({"user": 50}, ["data.unbounded: feature 'item'"]),
        ({"user": 50, "itme": 70, "item": 70}, ["data.unbounded.itme", "did you mean 'item'"]),
        ({"user": 50, "item": 70, "history": 70}, ["data.unbounded.history", "there are: item, tags, user"]),
        ({"user": 1, "item": 70}, ["data.unbounded.user.rows", "greater than 1"]),
        ({"user": {"rows": 50, "eviction": "fifo"}, "item": 70}, ["data.unbounded.user.eviction", "fifo"]),
        ({"user": {"rows": 50, "every": 5}, "item": 70}, ["data.unbounded.user.every"]),
    ],
)
def test_mistakes_in_one_sentence(
    scattered: Path, tmp_path: Path, unbounded: dict[str, object], parts: list[str]
) -> None:
    path = commands.write_config(tmp_path / "run.yaml", hashed.config(scattered, unbounded))
    with pytest.raises(UserError) as error:
        count_costs(load_config(path, []), open_dataset(str(scattered)).spec)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_model_that_needs_numbered_items(scattered: Path, tmp_path: Path) -> None:
    model = {"name": "multitask_net", "user": "user", "item": "item"}
    tasks = [{"name": "click", "loss": "bpr"}]
    content = hashed.config(scattered, {"user": 50, "item": 70}, model=model, tasks=tasks)
    with pytest.raises(UserError, match=r"data\.unbounded: multitask_net draws and ranks items by their numbers"):
        load_config(commands.write_config(tmp_path / "run.yaml", content), [])


def test_costs_and_profiles(scattered: Path, tmp_path: Path) -> None:
    path = commands.write_config(tmp_path / "run.yaml", hashed.config(scattered, {"user": 50, "item": 70}))
    costs = count_costs(load_config(path, []), open_dataset(str(scattered)).spec)
    assert costs[0].table_parameters == 8 * (50 + 70 + 30)
    profile = profile_dataset(scattered)
    by_name = {entry.feature.name: entry for entry in profile.ids}
    assert (by_name["history"].vocabulary_size, by_name["tags"].vocabulary_size) == (None, 30)
    assert by_name["user"].outside == by_name["history"].outside == 0


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hashed.write_dataset(tmp_path_factory.mktemp("scattered") / "data", rows=200)
