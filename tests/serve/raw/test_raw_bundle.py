"""Raw rows, from a log to scores: a bundle scores them as `predict` scores what `prepare table --like` makes of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.prepare.table.adapter import prepare_table
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.prepare.table.like import prepare_like
from dlrm_mtl.serve.bundle import Manifest, measure
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.scorer import BLOCK
from tests import commands
from tests.serve.http.servers import running, wait_until

ROOT = Path(__file__).parents[3]
DESCRIPTION: dict[str, Any] = {
    "name": "shop",
    "source": {"nulls": ["", "NA"]},
    "features": [
        {"name": "order", "kind": "keep"},
        {"name": "user", "kind": "sparse", "vocabulary": {"name": "hash", "size": 1000}},
        {"name": "item", "kind": "sparse", "column": "item_no", "vocabulary": {"name": "frequency", "min_count": 2}},
        {"name": "city", "kind": "sparse"},
        {"name": "seen", "kind": "sequence", "separator": " ", "vocabulary_of": "item", "max_length": 3},
        {"name": "marks", "kind": "sparse", "separator": ",", "brackets": True},
        {"name": "price", "kind": "dense", "transform": "log1p", "clip": [0, 15]},
        {"name": "age", "kind": "dense", "fill": 30},
        {"name": "balance", "kind": "dense", "transform": "signed_log"},
    ],
    "labels": [{"name": "click"}, {"name": "good", "where": 'grade == "A"'}],
    "split": {"name": "random"},
}


def log(rows: int, seed: int) -> pd.DataFrame:
    """Rows of a shop's log; others with another seed, with some items and cities of their own."""
    rng = np.random.default_rng(seed)
    first = 40 * seed
    seen = [" ".join(map(str, rng.integers(first, first + 80, rng.integers(0, 6)))) for _ in range(rows)]
    marks = [str([f"m{mark}" for mark in rng.integers(0, 9, rng.integers(0, 3))]) for _ in range(rows)]
    return pd.DataFrame(
        {
            "order": [f"o{seed}-{row}" for row in range(rows)],
            "user": rng.integers(1, 300, rows),
            "item_no": pd.array(
                np.where(rng.random(rows) < 0.1, None, rng.integers(first, first + 80, rows)), dtype="Int64"
            ),
            "city": rng.choice(["Köln", "São Paulo", "東京", "NA", "Ur"] + [f"town {seed}"] * seed, rows),
            "seen": seen,
            "marks": marks,
            "price": rng.uniform(0, 20, rows).round(2),
            "age": pd.array(np.where(rng.random(rows) < 0.2, None, rng.integers(18, 80, rows)), dtype="Int64"),
            "balance": rng.normal(0, 100, rows).round(2),
            "click": rng.integers(0, 2, rows),
            "grade": rng.choice(["A", "B"], rows),
        }
    )


def write_json_lines(frame: pd.DataFrame, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in pa.Table.from_pandas(frame).to_pylist()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set from a log, a run on it, and its bundle."""
    folder = tmp_path_factory.mktemp("raw")
    log(1500, 0).to_csv(folder / "old.csv", index=False)
    prepare_table([folder / "old.csv"], folder / "data", validate(TableDescription, DESCRIPTION, "description"))
    config = {
        "name": "shop",
        "data": {"path": str(folder / "data"), "batch_size": 128, "lanes": 4},
        "tasks": [{"name": "click"}, {"name": "good"}],
        "model": {
            "embeddings": {"dim": 8, "init_std": 1.0},
            "multitask": {"name": "shared_bottom", "layers": [16]},
        },
        "training": {"max_steps": 6},
    }
    loaded = dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", config))
    dlrm_mtl.train(loaded, folder / "run", progress=False)
    export_run(folder / "run", folder / "bundle")
    return folder


def compare_with_predict(folder: Path, place: Path, rows: int, call: Callable[..., tuple[int, str]]) -> None:
    """Score later rows from Parquet and from JSON lines, and compare them with predictions for the prepared rows."""
    later = log(rows, 1).drop(columns=["click", "grade"])
    later.to_parquet(place / "later.parquet", index=False)
    write_json_lines(later, place / "later.jsonl")
    prepare_like([place / "later.parquet"], place / "like", folder / "data")
    wanted = dlrm_mtl.open_run(folder / "run").predict(place / "like/test", batch_size=BLOCK)
    assert isinstance(wanted, pa.Table)
    whole = rows - rows % BLOCK
    for source in ("later.parquet", "later.jsonl"):
        target = place / f"{source}.scores.parquet"
        options = ["--input", place / source, "--output", target, "--carry", "order", "--raw-rows"]
        code, printed = call("score", folder / "bundle", *options)
        assert code == 0, printed
        assert "note: feature 'item': " in printed
        assert "values or ids were unknown" in printed
        found = pq.read_table(target)
        assert found["order"].to_pylist() == later["order"].tolist()
        for task in ("click", "good"):
            mine, theirs = found[task].to_numpy(), wanted[task].to_numpy()
            assert len(np.unique(mine)) > rows // 4, "rows are told apart"
            assert np.array_equal(mine[:whole], theirs[:whole]), "bit for bit; predict does not fill up its last batch"
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


def test_scores_of_raw_rows_are_predictions(folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    compare_with_predict(folder, tmp_path, 5 * BLOCK + 13, call)


@pytest.mark.slow
def test_ten_thousand_raw_rows(folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    compare_with_predict(folder, tmp_path, 10_000, call)


def test_golden_rows_are_raw_where_they_can_be(folder: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (folder / "bundle/golden.jsonl").read_text().splitlines()]
    raw = ["item_no", "city", "marks", "seen", "price", "age", "balance"]
    assert list(lines[0]["raw"]) == raw, "a hash has no inverse"
    assert {line["raw"]["city"] for line in lines} == {"Köln", "São Paulo", "東京", "Ur", None}
    assert all(round(line["raw"]["price"], 2) == line["raw"]["price"] for line in lines), "as in the log"
    export_run(folder / "run", tmp_path / "again")
    for path in (folder / "bundle").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def changed(bundle: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a bundle with another model.json, and checksums that fit."""
    shutil.copytree(bundle, copy)
    model = json.loads((copy / "model.json").read_text())
    change(model)
    (copy / "model.json").write_text(json.dumps(model))
    manifest = Manifest.model_validate_json((copy / "bundle.json").read_text())
    files = {name: measure(copy / name) for name in manifest.files}
    (copy / "bundle.json").write_text(manifest.model_copy(update={"files": files}).model_dump_json(indent=1))
    return copy


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("seen", "max_length", 2), ("seen", "separator", "|"), ("marks", "brackets", False), ("price", "transform", None)],
)
def test_another_transform_is_refused_by_name(folder: Path, tmp_path: Path, name: str, key: str, value: Any) -> None:
    def change(model: dict[str, Any]) -> None:
        (feature,) = [one for one in model["raw"]["features"] if one["name"] == name]
        feature[key] = value

    copy = changed(folder / "bundle", tmp_path / "copy", change)
    with pytest.raises(UserError, match=f"on the golden rows raw values of the feature '{name}' are read otherwise"):
        dlrm_mtl.Scorer(copy)


def test_policies_for_raw_rows(folder: Path) -> None:
    row = {
        "user": 17,
        "item_no": 3,
        "city": "Ur",
        "seen": "3 4",
        "marks": "['m1']",
        "price": 2.5,
        "age": 40,
        "balance": 1,
    }
    scorer = dlrm_mtl.Scorer(folder / "bundle", rows="raw", missing={"city": "default", "age": "default"})

    def one(scorer: dlrm_mtl.Scorer = scorer, /, **changes: Any) -> float:
        return float(scorer.score([{**row, **changes}])["click"][0])

    without = {key: value for key, value in row.items() if key not in ("city", "age")}
    assert float(scorer.score([without])["click"][0]) == one(city=None, age=None) == one(city="NA", age=30)
    assert scorer.counts == {"missing": {"city": 1, "age": 1}, "unknown": {}}
    assert one(city="Atlantis") == one(city=None)
    assert one(item_no="3.0") == one(item_no=3) == one(item_no=3.0) == one(item_no="3") != one(item_no=4)
    assert one(seen=[3, 4]) == one() == one(seen="3.0 4") != one(seen="4 3 4")
    assert scorer.counts["unknown"]["city"] == 1
    assert one(user=10**30) != one(user=10**31), "hashes have ids for all values"
    strict = dlrm_mtl.Scorer(folder / "bundle", rows="raw", unknown={"city": "refuse", "seen": "default"})
    assert one(strict, seen="3 999999 4") == one(strict)
    for changes, sentence in [
        (
            {"city": "Atlantis"},
            r"rows, row 0: 'city', which feature 'city' reads, holds 'Atlantis', which its vocabulary",
        ),
        (
            {"price": "cheap"},
            r"rows, row 0: 'price', which feature 'price' reads, holds 'cheap', which is no finite number",
        ),
        ({"price": [1]}, "'price' reads, holds a list where a number is expected"),
        ({"item_no": {"a": 1}}, r"'item' reads, holds \{'a': 1\}, which is no value of a column; give a text"),
        (
            {"item_no": 2.0**53},
            "'item' reads, holds 9007199254740992, and numbers of type double from 9007199254740992 on",
        ),
        ({"city": "\ud800"}, r"'city' reads, holds '\\ud800', which cannot be read"),
    ]:
        with pytest.raises(UserError, match=sentence):
            one(strict, **changes)
    with pytest.raises(UserError, match="row 0: there is no field 'item_no', which feature 'item' reads; add it"):
        strict.score([{key: value for key, value in row.items() if key != "item_no"}])


def test_raw_requests_are_ranked(folder: Path) -> None:
    scorer = dlrm_mtl.Scorer(folder / "bundle", rows="raw")
    context = {"user": 17, "city": "Ur", "seen": "3 4", "age": 40, "balance": 1.5}
    candidates = [{"item_no": item, "marks": "['m1', 'm2']", "price": item / 4} for item in range(70)]
    ranked = scorer.rank(context, candidates, top=5)
    scores = scorer.score([{**context, **candidate} for candidate in candidates])["click"]
    np.testing.assert_allclose(ranked.tasks["click"], scores[ranked.order], rtol=0, atol=1e-6)
    assert scores[ranked.order[0]] == scores.max()


def test_skew_of_raw_rows(folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    later = log(150, 1).drop(columns=["click", "grade"])
    later.to_parquet(tmp_path / "later.parquet", index=False)
    prepare_like([tmp_path / "later.parquet"], tmp_path / "like", folder / "data")
    options = ["--raw-rows", "--data", tmp_path / "like", "--split", "test", "--on", "order"]
    write_json_lines(later, tmp_path / "log.jsonl")
    code, printed = call("skew", folder / "bundle", tmp_path / "log.jsonl", *options)
    assert code == 0, printed
    assert "150 rows of the log found by order\nfeatures: no skew\n" in printed
    later["seen"] = later["seen"].str.replace(" ", ",")  # as a client might join them
    write_json_lines(later, tmp_path / "log.jsonl")
    code, printed = call("skew", folder / "bundle", tmp_path / "log.jsonl", *options)
    assert code == 1
    assert "features: 'seen' differs most often, in " in printed


def test_raw_rows_over_http(folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    rows = pa.Table.from_pandas(log(90, 1).drop(columns=["click", "grade", "order"]), preserve_index=False).to_pylist()
    scorer = dlrm_mtl.Scorer(folder / "bundle", rows="raw")
    requests = tmp_path / "requests.jsonl"
    options = ("--raw-rows", "--workers", 1, "--request-log", requests, "--log-share", 1)
    with running(tmp_path / "log", folder / "bundle", *options) as server, server.client() as client:
        answer = client.post("/v1/score", json={"rows": rows})
        refused = client.post("/v1/score", json={"rows": [{**rows[0], "price": "cheap"}]})
        ranked = client.post("/v1/rank", json={"context": {"user": 5}, "candidates": rows[:20], "top": 3})
        wait_until(lambda: requests.exists() and len(requests.read_text().splitlines()) == 2, server.printed)
    for task, scores in scorer.score(rows).items():
        np.testing.assert_allclose(answer.json()["scores"][task], scores, rtol=0, atol=1e-6)
    assert refused.status_code in (400, 422)
    assert "'price', which feature 'price' reads, holds 'cheap', which is no finite number" in refused.text
    assert len(ranked.json()["order"]) == 3
    code, printed = call("skew", folder / "bundle", requests, "--raw-rows")
    assert (code, "scores: equal in all 93 rows" in printed) == (0, True), printed


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.just(5000).map(lambda digits: 10**digits),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ["user", "item_no", "city", "seen", "marks", "price", "age", "balance"]


@pytest.fixture(scope="module")
def lenient(folder: Path) -> dlrm_mtl.Scorer:
    return dlrm_mtl.Scorer(folder / "bundle", rows="raw", missing="default")


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_are_scored_or_refused_in_one_sentence(lenient: dlrm_mtl.Scorer, rows: list[dict[str, Any]]) -> None:
    refused = ""
    try:
        scores = lenient.score(rows)
    except UserError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("rows, row ")
        assert refused.endswith(".")
        assert len(refused.splitlines()) == 1
        return
    assert all(np.isfinite(values).all() for values in scores.values())
    for number, row in enumerate(rows):
        for task, alone in lenient.score([row]).items():
            assert alone[0] == pytest.approx(scores[task][number], abs=1e-6), "no row depends on the others"


def test_raw_rows_need_no_duckdb(folder: Path) -> None:
    script = (
        "import sys, dlrm_mtl.serve; scorer = dlrm_mtl.serve.Scorer(sys.argv[1], rows='raw');"
        "scorer.score([dict(user=1, item_no=2, city='Ur', seen='1 2', marks='[]', price=1, age=3, balance=0)]);"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in ('torchrec', 'fbgemm_gpu', 'duckdb')))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder / "bundle")], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_data_set_without_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KuaiRand: raw values of features in vocabularies.parquet, everything else as stored."""
    monkeypatch.chdir(ROOT)
    steps = ["training.max_steps=2", "training.evaluate_every=null"]
    dlrm_mtl.train(dlrm_mtl.load_config("configs/kuairand_mmoe_debug.yaml", steps), tmp_path / "run", progress=False)
    export_run(tmp_path / "run", tmp_path / "bundle")
    table = pq.read_table("datasets/kuairand_pure/test").slice(0, 300)
    prepared = dlrm_mtl.Scorer(tmp_path / "bundle")
    scorer = dlrm_mtl.Scorer(tmp_path / "bundle", rows="raw")
    frame = table.to_pandas()
    known = pd.read_parquet("datasets/kuairand_pure/vocabularies.parquet")
    for feature, part in known.groupby("feature"):
        values = part.set_index("id")["value"]
        column = frame[feature]
        frame[feature] = [
            None if one is None else [values[each] for each in one] if isinstance(one, np.ndarray) else values.get(one)
            for one in column
        ]
    wanted, found = prepared.score(table), scorer.score(frame)
    for task in scorer.tasks:
        assert np.array_equal(found[task], wanted[task])
    assert scorer.counts == {"missing": {}, "unknown": {}}


def test_a_bundle_without_raw_rows(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Path(shutil.copytree(folder / "data", tmp_path / "data"))
    (data / "table.yaml").unlink()
    (data / "vocabularies.parquet").unlink()
    with caplog.at_level("INFO"):
        export_run(folder / "run", tmp_path / "bundle", overrides=[f"data.path={data}"])
    assert f"prepared rows only: {data}/vocabularies.parquet is not the one of the run's training" in caplog.text
    assert not (tmp_path / "bundle/values.safetensors").exists()
    dlrm_mtl.Scorer(tmp_path / "bundle")
    with pytest.raises(UserError, match="this bundle knows no raw rows, because its data set had no table"):
        dlrm_mtl.Scorer(tmp_path / "bundle", rows="raw")


def test_another_recipe_is_refused(folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(folder / "data", tmp_path / "data"))
    text = (data / "table.yaml").read_text()
    (data / "table.yaml").write_text(text.replace("transform: signed_log", "transform: log1p"))
    with pytest.raises(UserError, match="transform of feature 'balance' is 'log1p', and was 'signed_log' when the run"):
        export_run(folder / "run", tmp_path / "bundle", overrides=[f"data.path={data}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
