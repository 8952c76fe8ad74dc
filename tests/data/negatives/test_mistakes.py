"""Every mistake about negatives ends in one sentence, before training starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dlrm_mtl.config.check import check_against_data_set
from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.errors import UserError
from tests import commands
from tests.data.negatives.shop import SPEC, reader, write
from tests.synthetic import write_dataset


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write(tmp_path / "shop", [[60], [40]])
    return tmp_path / "shop"


def sentence(folder: Path, tmp_path: Path, negatives: dict[str, Any], **changes: Any) -> str:
    """Output of `dlrm-mtl config check` for a run with these ``negatives``."""
    data = {"path": str(folder), "negatives": {"item": "item", **negatives}, **changes.pop("data", {})}
    content = {"name": "shop", "tasks": [{"name": "click"}], **changes, "data": data}
    place = commands.write_config(tmp_path / "run.yaml", content)
    with pytest.raises(UserError) as raised:
        check_against_data_set(load_config(place), str(place))
    message = str(raised.value)
    assert message.startswith(f"{place}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("negatives", "parts"),
    [
        ({"item": "itme"}, ["data.negatives.item", "'itme'", "did you mean 'item'"]),
        ({"item": "price"}, ["data.negatives.item", "no sparse feature 'price'"]),
        ({"item": "history"}, ["data.negatives.item", "no sparse feature 'history'"]),
        ({"known": "avoid"}, ["data.negatives", "add user"]),
        ({"known": "avoid", "user": "usr"}, ["data.negatives.user", "did you mean 'user'"]),
        ({"known": "avoid", "user": "item"}, ["data.negatives", "'item'", "name two"]),
        ({"along": ["categroy"]}, ["data.negatives.along.0", "did you mean 'category'"]),
        ({"along": ["tags", "item"]}, ["data.negatives", "'item'", "the item itself"]),
        ({"along": ["user"], "user": "user"}, ["data.negatives", "'user'", "the user itself"]),
        ({"along": ["tags", "tags"]}, ["data.negatives", "'tags' twice"]),
        ({"each": 0}, ["data.negatives.each", "0"]),
        ({"each": "many"}, ["data.negatives.each", "many"]),
        ({"by": "popular"}, ["data.negatives.by", "did you mean 'popularity'"]),
        ({"known": "avoids"}, ["data.negatives.known", "did you mean 'avoid'"]),
        ({"exponent": -1}, ["data.negatives.exponent", "-1"]),
        ({"count": 3}, ["data.negatives.count", "no key 'count'", "each"]),
    ],
)
def test_names_and_values(shop: Path, tmp_path: Path, negatives: dict[str, Any], parts: list[str]) -> None:
    message = sentence(shop, tmp_path, negatives)
    assert all(part in message for part in parts), message


def test_a_feature_that_the_run_leaves_out(shop: Path, tmp_path: Path) -> None:
    message = sentence(shop, tmp_path, {"along": ["tags"]}, data={"sparse": ["user", "item"]})
    assert "data.negatives.along.0: the run reads no feature 'tags'" in message


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_unbounded_items_have_no_list(shop: Path, tmp_path: Path, by: str) -> None:
    message = sentence(shop, tmp_path, {"by": by}, data={"unbounded": {"item": 100}})
    assert "data.negatives.by" in message
    assert "in_batch" in message


def test_labels_without_positives(shop: Path, tmp_path: Path) -> None:
    tasks = [{"name": "seconds", "loss": "mean_squared_error"}]
    assert "no task reads a binary label" in sentence(shop, tmp_path, {}, tasks=tasks)


@pytest.mark.parametrize(
    ("tasks", "model"),
    [
        ([{"name": "buy", "only_where": "click"}], {}),
        ([{"name": "click", "loss": "bpr"}], {"name": "multitask_net", "user": "user", "item": "item"}),
    ],
)
def test_tasks_that_would_not_learn_from_negatives(
    shop: Path, tmp_path: Path, tasks: list[dict[str, Any]], model: dict[str, Any]
) -> None:
    assert "data.negatives: no task would learn" in sentence(shop, tmp_path, {}, tasks=tasks, model=model)


@pytest.mark.parametrize("role", ["item", "user"])
@pytest.mark.parametrize("by", ["uniform", "in_batch"])
def test_columns_of_lists(shop: Path, role: str, by: str) -> None:
    names = {"item": "item", "user": "user", role: "tags"}
    with pytest.raises(UserError, match=f"data.negatives.{role}: .*'tags'.* lists") as raised:
        reader(shop, {"by": by, "known": "avoid", **names})
    assert "\n" not in str(raised.value)


def test_a_bad_id_is_found_before_training(shop: Path) -> None:
    """Without statistics in the footer, only reading finds it."""
    file = shop / "train" / "part-001.parquet"
    table = pq.read_table(file)
    table = table.set_column(2, "item", pa.array([30, *table["item"].to_pylist()[1:]], pa.int64()))
    pq.write_table(table, file, write_statistics=False)
    with pytest.raises(UserError, match=r"part-001.*holds the id 30"):
        reader(shop, {})


def test_config_check_and_train_leave_with_the_sentence(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", rows=100)
    content = {"name": "x", "tasks": [{"name": "click"}], "data": {"path": str(folder), "negatives": {"item": "itme"}}}
    place = commands.write_config(tmp_path / "run.yaml", content)
    for command in (("config", "check", place), ("train", place, "--output", tmp_path / "out")):
        done = commands.run(*command)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert "did you mean 'item'?" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_config_check_does_without_the_data_set(tmp_path: Path) -> None:
    data = {"path": str(tmp_path / "nowhere"), "negatives": {"item": "anything"}}
    place = commands.write_config(tmp_path / "run.yaml", {"name": "x", "tasks": [{"name": "click"}], "data": data})
    check_against_data_set(load_config(place), str(place))


def test_the_description_itself_may_be_wrong(shop: Path, tmp_path: Path) -> None:
    (shop / "dataset.yaml").write_text(yaml.safe_dump({**SPEC, "labels": [{"name": "buy"}]}))
    assert "tasks.0.label" in sentence(shop, tmp_path, {})
