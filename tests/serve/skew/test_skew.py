"""`dlrm-mtl skew`: logged requests against a bundle and against training data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlrm_mtl
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.skew.distance import differing, population_stability
from dlrm_mtl.serve.skew.values import FeatureValues, values_of
from tests import commands, synthetic

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skew")
    data = synthetic.write_dataset(folder / "data", rows=400)
    content = synthetic.config(data, training={"epochs": 1, "max_steps": 4, "log_every": 2})
    dlrm_mtl.train(
        dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", content)), folder / "run", progress=False
    )
    export_run(folder / "run", folder / "bundle")
    return folder


def rows_of(folder: Path, split: str = "test") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "data" / split).to_pylist()
    return rows


def write_log(path: Path, scorer: dlrm_mtl.Scorer, rows: list[dict[str, Any]], size: int = 7) -> list[dict[str, Any]]:
    """The rows as requests of several forms, as the server logs them."""
    lines = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        if start // size % 2:
            context = {"age": part[0]["age"]}
            candidates = [{**row, "age": context["age"]} for row in part]
            ranked = scorer.rank(context, candidates, top=4)
            scores = {task: values.tolist() for task, values in ranked.tasks.items()}
            line = {"context": context, "candidates": candidates, "order": ranked.order.tolist(), "scores": scores}
        else:
            line = {"rows": part, "scores": {task: each.tolist() for task, each in scorer.score(part).items()}}
        lines.append({"version": scorer.version, **line})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_the_same_scores(folder: Path, tmp_path: Path, call: Call) -> None:
    scorer = dlrm_mtl.Scorer(folder / "bundle")
    lines = write_log(tmp_path / "log.jsonl", scorer, rows_of(folder))
    code, printed = call("skew", folder / "bundle", tmp_path / "log.jsonl")
    assert code == 0, printed
    compared = sum(len(line["scores"]["click"]) for line in lines)
    assert printed == (
        f"{tmp_path}/log.jsonl: 100 rows in {len(lines)} requests\n"
        f"scores: equal in all {compared} rows (within 1e-05)\n"
    )
    lines[0]["scores"]["buy"][2] += 0.25
    lines[3]["scores"]["click"][1] += 0.01
    lines[4]["version"] = "another"
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, printed = call("skew", folder / "bundle", tmp_path / "log.jsonl")
    assert code == 1
    assert "note: 1 requests were scored by version another, so their scores are not compared\n" in printed
    assert f"scores: 2 of {compared - 7} rows differ" in printed
    assert "by up to 0.25 in task buy\n" in printed


def test_the_feature_that_differs_row_by_row(folder: Path, tmp_path: Path, call: Call) -> None:
    rows = rows_of(folder)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data", folder / "data", "--split", "test", "--on", "row"]
    code, printed = call("skew", folder / "bundle", tmp_path / "log.jsonl", *options)
    assert code == 0, printed
    assert "no scores to compare\n" in printed
    assert f"{folder}/data: 100 rows of the log found by row\nfeatures: no skew\n" in printed
    for number, row in enumerate(rows):
        if number < 40:
            row["price"] += 0.5
        if number < 30:
            row["history"] = [*(row["history"] or []), 3]
        if number < 20:
            del row["tags"]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed = call("skew", folder / "bundle", tmp_path / "log.jsonl", *options)
    assert code == 1
    assert "features: 'price' differs most often, in 40.0% of the rows\n" in printed
    table = [
        line.split() for line in printed.splitlines() if line.strip().startswith(("price", "history", "tags", "age"))
    ]
    assert [line[0] for line in table] == ["price", "history", "tags", "age"]
    assert table[1][2] == "30.0%"
    assert "20.0%" in table[2], "rows without the field"
    assert "yes" not in table[3]


def test_distributions(folder: Path, tmp_path: Path, call: Call) -> None:
    rows = rows_of(folder, "train")
    frame = pd.DataFrame(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    code, printed = call("skew", folder / "bundle", tmp_path / "log.parquet", "--data", folder / "data")
    assert code == 0, printed
    assert "features: no skew" in printed
    frame["age"] = frame["age"] * 2
    frame.loc[: len(frame) // 4, "item"] = 0
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), tmp_path / "log.parquet")
    code, printed = call("skew", folder / "bundle", tmp_path / "log.parquet", "--data", folder / "data")
    assert code == 1
    assert "features: 'age' differs most, with a stability index of " in printed
    yes = [line.split()[0] for line in printed.splitlines() if " yes " in line]
    assert yes == ["age", "item"]


@pytest.mark.parametrize(
    ("options", "log", "sentence"),
    [
        (["--on", "row"], "{}", "--on: names columns that identify a row in the data set of --data; add it"),
        ([], "", "log.jsonl: there are no rows; name a log that has some"),
        ([], "[1]", "log.jsonl, row 0: is no JSON object"),
        ([], '{"rows": [1], "scores": {}}', "log.jsonl, line 0: a row is no object"),
        ([], '{"rows": [{}], "scores": {"click": [1, 2]}}', "line 0: scores do not belong to the rows of this request"),
        ([], '{"rows": [{}], "scores": {"like": [1]}}', "line 0: scores of 'like', which is no task of the bundle"),
        (["--data", "DATA", "--on", "row"], '{"user": 1}', "row 0 has no field 'row', which --on names"),
        (["--data", "DATA", "--on", "row"], '{"row": -1}', "split 'train' has no row of the log by row; name other"),
        (["--data", "DATA", "--on", "rov"], '{"rov": -1}', "there is no column 'rov'; did you mean 'row'"),
        (["--data", "DATA", "--split", "tset"], "{}", "there is no split 'tset'; did you mean 'test'"),
    ],
)
def test_mistakes(folder: Path, tmp_path: Path, call: Call, options: list[str], log: str, sentence: str) -> None:
    (tmp_path / "log.jsonl").write_text(log + "\n")
    given = [str(folder / "data") if option == "DATA" else option for option in options]
    code, printed = call("skew", folder / "bundle", tmp_path / "log.jsonl", *given)
    assert code == 2, printed
    assert printed.startswith("error: ") or "\nerror: " in printed
    assert sentence in printed


LISTS = st.lists(st.none() | st.lists(st.none() | st.integers(0, 3), max_size=3), min_size=1, max_size=12)


@given(LISTS, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_rows_that_differ(one: list[Any], random: Any) -> None:
    other = [random.choice([row, None, [1], [2, 3]]) for row in one]
    columns = [values_of(pa.array(rows, pa.list_(pa.int32()))) for rows in (one, other)]
    plain = [[[value for value in row or [] if value is not None] for row in rows] for rows in (one, other)]
    assert differing(*columns, "sparse").tolist() == [a != b for a, b in zip(*plain, strict=True)]
    rows = np.array([random.randrange(len(one)) for _ in range(5)])
    taken = columns[0].take(rows)
    parts = np.split(taken.values, np.cumsum(taken.lengths))[:-1]
    assert [part.tolist() for part in parts] == [plain[0][row] for row in rows]


def test_stability_by_hand() -> None:
    training, log = (
        FeatureValues(np.array([1, 1, 2]), np.ones(3, np.int64)),
        FeatureValues(np.array([1, 9]), np.array([1, 1, 0, 0])),
    )
    p, q = np.array([2 / 3, 1 / 3, 1e-4, 1e-4]), np.array([1 / 4, 1e-4, 1 / 4, 1 / 2])
    assert population_stability(training, log, "sparse") == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    numbers = FeatureValues(np.arange(100.0), np.ones(100, np.int64))
    assert population_stability(numbers, numbers, "dense") == 0
    shifted = FeatureValues(np.arange(100.0) + 1000, np.ones(100, np.int64))
    p, q = np.full(10, 0.1), np.array([1e-4] * 9 + [1.0])
    assert population_stability(numbers, shifted, "dense") == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
