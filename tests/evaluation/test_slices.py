"""Metrics by slice against literal selections of rows, from a trained run and its files."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dlrm_mtl
from dlrm_mtl.data.carried_columns import NONE
from dlrm_mtl.evaluation.slices import slices_of_numbers, slices_of_values
from dlrm_mtl.metrics import METRICS, task_metrics
from dlrm_mtl.metrics.group_auc import gauc, group_aucs
from tests import commands, synthetic

SLICES: list[Any] = [
    {"column": "city", "largest": 3},
    {"column": "item", "largest": 5},
    {"column": "age", "edges": [30, 45.5]},
    {"column": "price", "quantiles": 4},
    "buy",
]


def with_cities(folder: Path) -> Path:
    """The synthetic data set, with a column of strings that no feature reads."""
    for path in folder.glob("*/*.parquet"):
        table = pq.read_table(path)
        rng = np.random.default_rng(table.num_rows)
        city = rng.choice(
            ["Oslo", "Rome", "Bonn", "Lyon", "Turku", None], table.num_rows, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]
        )
        pq.write_table(table.append_column("city", pa.array(city, pa.string())), path, row_group_size=90)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dlrm_mtl.Run]:
    folder = with_cities(synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=1200))
    content = synthetic.config(
        folder, training={"epochs": 1, "max_steps": 4}, metrics={"slices": SLICES, "gauc": ["user", "city"]}
    )
    path = commands.write_config(folder / "run.yaml", content)
    run = dlrm_mtl.train(dlrm_mtl.load_config(path), output=tmp_path_factory.mktemp("runs") / "sliced", progress=False)
    return folder, run


def test_every_slice_has_the_metrics_of_its_rows(trained: tuple[Path, dlrm_mtl.Run]) -> None:
    folder, run = trained
    rows = pq.read_table(folder / "test").to_pydict()
    predicted = run.predict(folder / "test")
    results = json.loads((Path(run.folder) / "results.json").read_text())
    assert results["test"] == run.metrics
    city, item, age, price, buy = results["slices"]["test"]
    assert [each["column"] for each in results["slices"]["test"]] == ["city", "item", "age", "price", "buy"]
    assert [each["by"] for each in (city, age, price)] == ["values", "edges", "quantiles"]
    assert [each["label"] for each in city["slices"]] == ["Oslo", *sorted_by_rows(rows["city"])[1:3], "none", "other"]
    assert [each["kind"] for each in city["slices"]] == ["value"] * 3 + ["none", "other"]
    assert city["slices"][-1]["values"] == 2
    assert len(item["slices"]) == 6
    assert [each["label"] for each in age["slices"]] == ["below 30", "30 to 45.5", "from 45.5", "none"]
    assert [each["label"] for each in buy["slices"]] == ["0", "1", "none"]
    sizes = [each["rows"] for each in price["slices"]]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 1
    own = [each["label"] for each in city["slices"] if each["kind"] == "value"]
    masks = {label: [value == label for value in rows["city"]] for label in own} | {
        "none": [value is None for value in rows["city"]],
        "other": [value is not None and value not in own for value in rows["city"]],
    }
    for each in city["slices"]:
        check(each, np.array(masks[each["label"]]), rows, predicted)
    ages = np.array([math.nan if value is None else value for value in rows["age"]])
    for each, mask in zip(
        age["slices"], (ages < 30, (ages >= 30) & (ages < 45.5), ages >= 45.5, np.isnan(ages)), strict=True
    ):
        check(each, mask, rows, predicted)


def test_auc_within_groups(trained: tuple[Path, dlrm_mtl.Run]) -> None:
    folder, run = trained
    rows = pq.read_table(folder / "test").to_pydict()
    predicted = run.predict(folder / "test")
    cities = sorted({city for city in rows["city"] if city})
    groups = {
        "user": [user or None for user in rows["user"]],  # 0 is unknown
        "city": [None if city is None else cities.index(city) for city in rows["city"]],
    }
    for task, (column, group) in itertools.product(("click", "buy"), groups.items()):
        there = [one is not None and label is not None for one, label in zip(group, rows[task], strict=True)]
        labels = np.array([label or 0 for label in rows[task]], float)[there]
        ids = np.array([one or 0 for one in group])[there]
        found = group_aucs(predicted[task].to_numpy()[there], labels, np.ones(len(labels)), ids)
        assert run.metrics[f"{task}/gauc@{column}"] == pytest.approx(gauc(found))
        assert run.metrics[f"{task}/gauc_groups@{column}"] == found.groups
        assert run.metrics[f"{task}/gauc_left_out@{column}"] == found.left_out
        assert found.groups > 2
    mean = (run.metrics["click/gauc@user"] + run.metrics["buy/gauc@user"]) / 2
    assert run.metrics["mean/gauc@user"] == pytest.approx(mean)
    assert any("click/gauc@user" in entry for entry in run.history)


def sorted_by_rows(values: list[str | None]) -> list[str]:
    known = [value for value in values if value is not None]
    return sorted(set(known), key=lambda value: (-known.count(value), value))


def check(found: dict[str, Any], mask: np.ndarray, rows: dict[str, list[Any]], predicted: pa.Table) -> None:
    assert found["rows"] == mask.sum()
    for task in ("click", "buy"):
        known = mask & np.array([value is not None for value in rows[task]])
        labels = np.array([value or 0 for value in rows[task]], float)[known]
        p = predicted[task].to_numpy().astype(float)[known]
        logits = np.log(p / (1 - p))
        of_task = found["tasks"][task]
        assert (of_task["rows"], of_task["positives"]) == (len(labels), labels.sum())
        assert of_task["metrics"].keys() == task_metrics("binary", ["user", "city"]).keys()
        for name in ("auc", "log_loss", "ece", "ks"):
            expected = METRICS["binary"][name](logits, labels, np.ones(len(labels)))
            assert of_task["metrics"][name] == (None if math.isnan(expected) else pytest.approx(expected, abs=1e-5)), (
                found["label"],
                name,
            )


def test_two_processes_and_another_batch_size_give_the_same(trained: tuple[Path, dlrm_mtl.Run]) -> None:
    folder, run = trained
    content = synthetic.config(
        folder, training={"epochs": 1, "max_steps": 4}, metrics={"slices": SLICES, "gauc": ["user", "city"]}
    )
    path = commands.write_config(folder / "two.yaml", content)
    done = commands.run(
        "train", path, "--output", folder / "two", "--set", "data.evaluation_batch_size=128", processes=2
    )
    assert done.returncode == 0, done.stderr
    assert "By slice: the worst and the best one" in done.stdout
    alone, two = (
        json.loads((Path(place) / "results.json").read_text())["slices"]["test"]
        for place in (run.folder, folder / "two")
    )
    assert [strip(each) for each in two] == [strip(each) for each in alone]
    for one, other in zip(alone, two, strict=True):
        for first, second in zip(one["slices"], other["slices"], strict=True):
            for task, of_task in first["tasks"].items():
                found = {name: math.nan if value is None else value for name, value in of_task["metrics"].items()}
                again = {
                    name: math.nan if value is None else value
                    for name, value in second["tasks"][task]["metrics"].items()
                }
                assert again == pytest.approx(found, rel=1e-3, nan_ok=True)


def strip(slicing: dict[str, Any]) -> list[Any]:
    return [(each["label"], each["kind"], each["rows"], each["tasks"]["buy"]["rows"]) for each in slicing["slices"]]


@pytest.mark.parametrize(
    ("slices", "said"),
    [
        (["town"], "column 'town', which metrics.slices.0.column reads, is missing; there are: age, buy, city"),
        (["history"], "metrics.slices.0.column: 'history' holds lists of ids, where a row needs one value"),
        (
            ["tags"],
            "column 'tags' has type list<element: int64>, and metrics.slices.0.column needs single values, not lists",
        ),
        (
            [{"column": "city", "edges": [1]}],
            "column 'city' has type string, and metrics.slices.0.column needs numbers",
        ),
        ([{"column": "age", "edges": [2, 1]}], "1 follows 2, where edges must ascend"),
        ([{"column": "age", "edges": [2], "quantiles": 3}], "edges and quantiles are two ways to make slices"),
        (["age", "age"], "the column 'age' is listed twice"),
    ],
)
def test_mistakes_are_sentences(trained: tuple[Path, dlrm_mtl.Run], slices: list[Any], said: str) -> None:
    refuse(trained[1], f"metrics.slices={json.dumps(slices)}", said)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (["session"], "column 'session', which metrics.gauc.0 reads, is missing; there are: age, buy, city"),
        (["user", "price"], "column 'price' has type float, and metrics.gauc.1 needs integers or strings"),
        (["history"], "metrics.gauc.0: 'history' holds lists of ids, where a row needs one value"),
    ],
)
def test_groups_that_cannot_be(trained: tuple[Path, dlrm_mtl.Run], groups: list[str], said: str) -> None:
    refuse(trained[1], f"metrics.gauc={json.dumps(groups)}", said)


def test_a_run_begins_only_with_all_columns_of_the_test_split(
    trained: tuple[Path, dlrm_mtl.Run], tmp_path: Path
) -> None:
    content = synthetic.config(trained[0], metrics={"slices": ["town"]})
    path = commands.write_config(tmp_path / "run.yaml", content)
    for command in (["config", "check", path], ["train", path, "--output", tmp_path / "run"]):
        done = commands.run(*command)
        assert done.returncode == 2
        assert "column 'town', which metrics.slices.0.column reads, is missing" in done.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()


def refuse(run: dlrm_mtl.Run, override: str, said: str) -> None:
    with pytest.raises(dlrm_mtl.UserError) as caught:
        run.evaluate(overrides=[override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slices_of_values_by_hand() -> None:
    codes = np.array([0, 1, 2, 2, NONE, 3, 1])
    found, names = slices_of_values(codes, np.array([1, 2, 2, 1, 1]), ["d", "c", "b", "a"], largest=3)
    assert names.labels == ["b", "c", "a", "none", "other"]
    assert found.tolist() == [4, 1, 0, 0, 3, 2, 1]
    assert names.values == [1, 1, 1, 1, 1]


def test_slices_of_numbers_by_hand() -> None:
    found, names = slices_of_numbers(np.array([-1.0, 2.0, 3.0, math.nan]), [2.0, 3.0])
    assert names.labels == ["below 2", "2 to 3", "from 3", "none"]
    assert found.tolist() == [0, 1, 2, 3]
    assert slices_of_numbers(np.ones(2), [])[1].labels == ["all", "none"]
