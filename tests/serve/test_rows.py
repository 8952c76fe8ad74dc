"""Rows to score: every form of them, what is refused, and what policies make of fields and ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.export import export_run
from tests import commands, synthetic

ROW = {"user": 1, "item": 2, "tags": [3, 4], "history": [5, 6, 7], "age": 30.0, "price": 0.5}
HUGE = 2**63 + 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and bundles of two runs: ``bundle``, and ``unbounded`` whose users are any integers."""
    folder = tmp_path_factory.mktemp("serve")
    data = synthetic.write_dataset(folder / "data", rows=300)
    for name, keys in {"bundle": {}, "unbounded": {"unbounded": {"user": 20}}}.items():
        content = synthetic.config(data, training={"epochs": 1, "max_steps": 3, "log_every": 2})
        content["data"] |= keys | {"max_sequence_length": 4}  # type: ignore[operator]
        config = dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", content))
        dlrm_mtl.train(config, folder / f"run_{name}", progress=False)
        export_run(folder / f"run_{name}", folder / name)
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> dlrm_mtl.Scorer:
    return dlrm_mtl.Scorer(folder / "bundle")


def one(scorer: dlrm_mtl.Scorer, **changes: Any) -> list[float]:
    """The scores of one row."""
    return [float(values[0]) for values in scorer.score([{**ROW, **changes}]).values()]


def test_what_is_the_same(scorer: dlrm_mtl.Scorer) -> None:
    assert one(scorer, tags=[3]) == one(scorer, tags=3)
    assert one(scorer, tags=[]) == one(scorer, tags=None)
    assert one(scorer, history=[1, 2, 3, 4, 5, 6]) == one(scorer, history=[3, 4, 5, 6]), "the most recent four"
    assert one(scorer, user=np.int32(1), age=np.float64(30), tags=np.array([3, 4])) == one(scorer)
    assert one(scorer, more="is passed over") == one(scorer)
    assert one(scorer, age=None) == one(scorer, age=40.0), "the mean"
    assert one(scorer, tags=[3, None, 4]) == one(scorer)
    assert one(scorer, user=2) != one(scorer)


def test_nothing_to_score(scorer: dlrm_mtl.Scorer) -> None:
    assert {task: values.shape for task, values in scorer.score([]).items()} == {"click": (0,), "buy": (0,)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"user": 60}, r"rows, row 1: 'user' holds the id 60, which feature 'user' does not know \(it knows 0\.\.59\)"),
        ({"tags": [1, -1]}, r"rows, row 1: 'tags' holds the id -1, which feature 'tags' does not know"),
        ({"user": "1"}, r"rows, row 1: 'user' holds '1' where an id or a list of ids is expected"),
        ({"user": True}, r"'user' holds True where an id"),
        ({"user": 1.5}, r"'user' holds 1\.5 where an id"),
        ({"user": 2**64}, r"'user' holds 18446744073709551616 where an id"),
        ({"history": 5}, r"'history' holds 5 where a list of ids is expected"),
        ({"tags": [[1]]}, r"'tags' holds \[\[1\]\] where an id or a list"),
        ({"age": "old"}, r"'age' holds 'old' where a number is expected"),
        ({"age": float("nan")}, r"rows, row 1: column 'age' holds nan, which is no finite number"),
        ({"price": 1e300}, r"column 'price' holds 1e\+300, which is no finite number"),
    ],
)
def test_values_that_are_refused(scorer: dlrm_mtl.Scorer, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        scorer.score([ROW, {**ROW, **changes}])


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([ROW, 5], "rows, row 1: is 5 where a mapping from columns to values is expected"),
        (ROW, "rows: dict is no choice of rows; give a list of dicts"),
        (pa.table({"user": ["a"]}), "rows: column 'user' has type string where an integer or a list of integers"),
        (pa.table({"user": [0.5]}), "rows: column 'user' has type double where an integer"),
        (pa.table({"user": [1]}), "rows, row 0: there is no field 'item', which feature 'item' reads; add it"),
        ([{k: v for k, v in ROW.items() if k != "age"}], "row 0: there is no field 'age'"),
    ],
)
def test_rows_that_are_refused(scorer: dlrm_mtl.Scorer, rows: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        scorer.score(rows)


@pytest.mark.parametrize("type_", [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()])
def test_integers_of_every_width(scorer: dlrm_mtl.Scorer, type_: pa.DataType) -> None:
    table = pa.Table.from_pylist([ROW] * 3)
    items = pa.array([2, None, 100], type_)
    tags = pa.array([[3, 4], [], [0]], pa.list_(type_))
    typed = table.set_column(1, "item", items).set_column(2, "tags", tags)
    plain = [{**ROW, "item": i, "tags": t} for i, t in zip(items.to_pylist(), tags.to_pylist(), strict=True)]
    assert np.array_equal(scorer.score(typed)["click"], scorer.score(plain)["click"])
    if str(type_).startswith("int"):
        with pytest.raises(UserError, match="row 1: 'item' holds the id -1"):
            scorer.score(table.set_column(1, "item", pa.array([1, -1, 1], type_)))


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in ROW.items() if key not in names}


def test_policies(folder: Path, scorer: dlrm_mtl.Scorer) -> None:
    lenient = dlrm_mtl.Scorer(
        folder / "bundle",
        missing={"*": "default", "history": "unknown", "item": "unknown"},
        unknown={"user": "unknown", "tags": "default"},
    )
    rows = [without("age"), without("history"), without("item", "tags"), ROW]
    expected = [{"age": None}, {"history": [0]}, {"item": 0, "tags": None}, {}]
    for found, changes in zip(lenient.score(rows)["click"], expected, strict=True):
        assert float(found) == pytest.approx(one(scorer, **changes)[0], abs=1e-6), changes
    assert one(lenient, user=60) == one(scorer, user=0)
    assert one(lenient, tags=[3, 30, 4]) == one(scorer, tags=[3, 4])
    assert one(lenient, tags=1000) == one(scorer, tags=None)
    with pytest.raises(UserError, match="holds the id 200, which feature 'item' does not know"):
        one(lenient, item=200)
    assert lenient.counts == {
        "missing": {"item": 1, "tags": 1, "history": 1, "age": 1},
        "unknown": {"user": 1, "tags": 2},
    }
    with pytest.raises(
        UserError, match="missing: there is no feature 'usr' to which this applies; did you mean 'user'"
    ):
        dlrm_mtl.Scorer(folder / "bundle", missing={"usr": "default"})
    with pytest.raises(UserError, match="unknown: user: 'ignore' is not a policy"):
        dlrm_mtl.Scorer(folder / "bundle", unknown={"user": "ignore"})  # type: ignore[dict-item]


def test_unbounded_ids(folder: Path) -> None:
    scorer = dlrm_mtl.Scorer(folder / "unbounded")
    known = pq.read_table(folder / "data/train", columns=["user"])["user"].to_pylist()
    scores = {user: one(scorer, user=user) for user in {*known, HUGE, -1} - {None}}
    nobody = one(scorer, user=0)
    without_row = {user for user, values in scores.items() if values == nobody}
    assert {HUGE, -1} <= without_row
    assert 1 <= len(scores) - len(without_row) <= 19, "rows of the table but the first"
    assert scorer.counts["unknown"] == {"user": len(without_row - {0})}
    strict = dlrm_mtl.Scorer(folder / "unbounded", unknown={"user": "refuse"})
    with pytest.raises(
        UserError, match=r"rows, row 0: 'user' holds the id -7, which feature 'user' does not know; correct"
    ):
        one(strict, user=-7)


@pytest.fixture(scope="module")
def inputs(folder: Path) -> Path:
    """The test split as one Parquet file, as a folder, and as JSON lines."""
    table = pq.read_table(folder / "data/test")
    pq.write_table(table, folder / "rows.parquet")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in table.to_pylist()))
    return folder


def test_files(inputs: Path, scorer: dlrm_mtl.Scorer, call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    table = pq.read_table(inputs / "rows.parquet")
    wanted = scorer.score(table)
    for source, target in [
        ("rows.parquet", "a.parquet"),
        ("data/test", "b.csv"),
        ("rows.jsonl", "c.jsonl"),
        ("rows.jsonl", "d.parquet"),
    ]:
        options = ["--input", inputs / source, "--output", tmp_path / target, "--carry", "row", "--batch-size", 20]
        code, printed = call("score", inputs / "bundle", *options)
        assert (code, printed) == (0, f"{tmp_path / target}: 75 rows, columns row, click, buy\n"), printed
        read = {".parquet": pq.read_table, ".csv": pyarrow.csv.read_csv, ".jsonl": _read_lines}[Path(target).suffix]
        found = read(tmp_path / target)
        assert found.column_names == ["row", "click", "buy"]
        assert found["row"].to_pylist() == table["row"].to_pylist()
        for task, values in wanted.items():
            np.testing.assert_allclose(found[task].to_numpy(), values, rtol=0, atol=1e-6, err_msg=target)


def _read_lines(path: Path) -> pa.Table:
    return pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--output", "x.txt"], "--output x.txt: the name ends in none of .parquet, .csv, .csv.gz, .jsonl, .jsonl.gz"),
        (["--missing", "user=maybe"], "--missing user=maybe: 'maybe' is not a policy"),
        (["--unknown", "usr=default"], "unknown: there is no feature 'usr'"),
        (["--carry", "click"], "--carry click: the scores have a column of this name"),
        (["--carry", "rov"], "column 'rov', to be carried over, is missing; did you mean 'row'"),
        (["--input", "none.jsonl"], "none.jsonl: there is no such file"),
        (["--input", "broken.jsonl"], "broken.jsonl, row 1: is not JSON"),
        (["--input", "wrong.jsonl"], "wrong.jsonl, row 1: 'user' holds 'x' where an id"),
        (["--input", "empty.jsonl"], "empty.jsonl: there are no rows to score"),
        (
            ["--carry", "history", "--output", "x.csv"],
            "--carry history: CSV cannot hold a column of the type list<element: int64>; leave it out",
        ),
    ],
)
def test_mistakes(
    inputs: Path,
    call: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    good = json.dumps(ROW)
    (tmp_path / "broken.jsonl").write_text(f"{good}\n{{\n")
    (tmp_path / "wrong.jsonl").write_text(f"{good}\n{json.dumps({**ROW, 'user': 'x'})}\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    before = sorted(tmp_path.iterdir())
    defaults = ["--input", str(inputs / "rows.parquet"), "--output", "out.parquet"]
    given = set(options[::2])
    defaults = [text for at in (0, 2) if defaults[at] not in given for text in defaults[at : at + 2]]
    code, printed = call("score", inputs / "bundle", *defaults, *options)
    assert code == 2, printed
    assert printed.startswith("error: ")
    assert sentence in printed
    assert len(printed.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_export_from_the_command_line(folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    code, printed = call("export", folder / "run_bundle", "--output", tmp_path / "bundle", "--checkpoint", "latest")
    assert code == 0, printed
    version = dlrm_mtl.Scorer(tmp_path / "bundle").version
    assert printed == f"{tmp_path}/bundle: synthetic of step 3, version {version}, tasks click, buy\n"
    code, printed = call("score", tmp_path, "--input", "a.parquet", "--output", "b.parquet")
    assert (code, printed.count("\n")) == (2, 1)
    assert "there is no bundle here; name the folder that `dlrm-mtl export` wrote" in printed
