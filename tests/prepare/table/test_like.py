"""``prepare table --like``: later rows get the ids, transforms and statistics of a data set, and nothing is estimated again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import fs

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.core.yaml_text import parse_yaml
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.prepare.common.ids import hash_ids
from dlrm_mtl.prepare.table.adapter import prepare, prepare_table
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.prepare.table.files import Table
from dlrm_mtl.prepare.table.like import prepare_like
from dlrm_mtl.prepare.table.recipe import Recipe, write_recipe
from tests import s3

Call = Callable[..., tuple[int, str]]

CONTENT: dict[str, Any] = {
    "name": "shop",
    "features": [
        {"name": "order", "kind": "keep"},
        {"name": "user", "kind": "sparse", "vocabulary": {"name": "hash", "size": 1000}},
        {"name": "item", "kind": "sparse", "vocabulary": {"name": "frequency", "min_count": 2}},
        {"name": "seen", "kind": "sequence", "separator": " ", "vocabulary_of": "item", "max_length": 2},
        {"name": "price", "kind": "dense", "transform": "log1p"},
        {"name": "age", "kind": "dense", "fill": 30, "standardise": False},
    ],
    "labels": [{"name": "click"}, {"name": "good", "where": 'grade == "A"'}],
    "split": {"name": "files", "files": {"train": ["old.csv"]}},
}


def log(rows: int, seed: int) -> pd.DataFrame:
    """Rows whose values drift with the seed, so that later ones have items and users of their own."""
    rng = np.random.default_rng(seed)
    item = rng.integers(10 * seed, 10 * seed + 14, rows)
    seen = [" ".join(map(str, rng.integers(10 * seed, 10 * seed + 14, rng.integers(0, 4)))) for _ in range(rows)]
    return pd.DataFrame(
        {
            "order": [f"o{seed}-{row}" for row in range(rows)],
            "user": rng.integers(1, 60, rows),
            "item": pd.array(np.where(rng.random(rows) < 0.1, None, item), dtype="Int64"),
            "seen": seen,
            "price": rng.uniform(0, 20, rows).round(2),
            "age": pd.array(np.where(rng.random(rows) < 0.2, None, rng.integers(18, 80, rows)), dtype="Int64"),
            "click": rng.integers(0, 2, rows),
            "grade": rng.choice(["A", "B"], rows),
        }
    )


def described(**changes: Any) -> TableDescription:
    return validate(TableDescription, {**CONTENT, **changes}, "description")


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """A data set of the older rows, these, and the newer rows."""
    old, new = log(300, 0), log(80, 1)
    old.to_csv(tmp_path / "old.csv", index=False)
    prepare_table([tmp_path / "old.csv"], tmp_path / "shop", described())
    return tmp_path / "shop", old, new


def reference(old: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Expected output of the newer rows, by pandas; and the number of unknown values."""
    training = pd.concat([old["item"].dropna().astype(str), old["seen"].str.split().str[-2:].explode().dropna()])
    counts = training.value_counts().rename_axis("value").reset_index(name="count")
    counts = counts[counts["count"] >= 2].sort_values(["count", "value"], ascending=[False, True], ignore_index=True)
    ids = {value: position for position, value in enumerate(counts["value"], start=1)}
    items = new["item"].map(lambda value: 0 if pd.isna(value) else ids.get(str(value), 0))
    seen = new["seen"].str.split().str[-2:].map(lambda values: [ids.get(value, 0) for value in values] or None)
    unknown = {
        "item": int(((items == 0) & new["item"].notna()).sum()),
        "seen": sum(value == 0 for values in seen.dropna() for value in values),
    }
    found = pd.DataFrame(
        {
            "user": hash_ids(new["user"].tolist(), 1000, feature="user"),
            "item": items.astype("int32"),
            "seen": seen,
            "price": np.log1p(new["price"]),
            "age": new["age"].fillna(30).astype(float),
            "order": new["order"],
            "click": new["click"].astype("int8"),
            "good": (new["grade"] == "A").astype("int8"),
        }
    )
    return found, unknown


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "test").to_pylist()  # type: ignore[no-any-return]


def as_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {**row, "price": pytest.approx(row["price"], rel=1e-12)}
        for row in pa.Table.from_pandas(frame, preserve_index=False).to_pylist()
    ]


@pytest.mark.parametrize("form", ["csv", "parquet", "texts", "doubles"])
def test_later_rows_are_what_they_would_be_beside_the_earlier_ones(
    shop: tuple[Path, pd.DataFrame, pd.DataFrame], tmp_path: Path, form: str
) -> None:
    folder, old, new = shop
    raw = tmp_path / ("new.csv" if form == "csv" else "new.parquet")
    if form == "csv":
        new.to_csv(raw, index=False)
    elif form == "parquet":
        new.to_parquet(raw)
    else:  # as a program writes that reads integers beside missing values, or all columns as texts
        changed = new.assign(item=new["item"].astype("float64"))
        if form == "texts":
            changed["item"] = changed["item"].map(lambda value: None if pd.isna(value) else str(value)).astype(object)
        changed.to_parquet(raw)
    wanted, unknown = reference(old, new)
    said = prepare_like([raw], tmp_path / "out", folder)
    assert rows_of(tmp_path / "out") == as_rows(wanted)
    assert said[0].startswith(
        f"{tmp_path}/out: 80 rows, made like those of {folder}; score them with: dlrm-mtl predict"
    )
    assert said[0].endswith("--carry order")
    values = {"item": int(new["item"].notna().sum()), "seen": int(wanted["seen"].dropna().map(len).sum())}
    assert said[1:] == [
        f"remark: feature {name!r}: {unknown[name]} of {values[name]} values ({unknown[name] / values[name]:.1%}) are not in "
        f"the vocabulary of {folder}, and have id 0, unknown"
        for name in ("item", "seen")
    ]

    # prepared beside the earlier rows they are the same, byte for byte where the files are of one kind
    spec, before = open_dataset(tmp_path / "out").spec, open_dataset(folder).spec
    assert (spec.features, spec.labels) == (before.features, before.labels)
    assert {name: split.rows for name, split in spec.splits.items()} == {"test": 80}
    if form == "csv":
        split = {"name": "files", "files": {"train": ["old.csv"], "test": ["new.csv"]}}
        prepare_table([tmp_path / "old.csv", raw], tmp_path / "both", described(split=split))
        part = "test/part-00000.parquet"
        assert (tmp_path / "out" / part).read_bytes() == (tmp_path / "both" / part).read_bytes()


def test_a_run_scores_later_rows(shop: tuple[Path, pd.DataFrame, pd.DataFrame], tmp_path: Path) -> None:
    folder, _, new = shop
    config = {
        "name": "shop",
        "data": {"path": str(folder), "batch_size": 64, "lanes": 1},
        "tasks": [{"name": "click"}, {"name": "good"}],
        "model": {"embeddings": {"dim": 4}, "multitask": {"name": "shared_bottom", "layers": [8]}},
        "training": {"max_steps": 4},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    dlrm_mtl.train(dlrm_mtl.load_config(tmp_path / "run.yaml"), run, progress=False)
    new.drop(columns=["click", "grade"]).to_csv(tmp_path / "new.csv", index=False)
    prepare_like([tmp_path / "new.csv"], tmp_path / "out", folder)
    scores = dlrm_mtl.predict(run, tmp_path / "out/test", carry=["order"])
    assert scores is not None
    joined = new[["order", "price"]].merge(scores.to_pandas(), on="order", validate="one_to_one")
    assert joined["order"].tolist() == new["order"].tolist()

    # the same rows, prepared beside the earlier ones
    new.to_csv(tmp_path / "new.csv", index=False)
    split = {"name": "files", "files": {"train": ["old.csv"], "test": ["new.csv"]}}
    prepare_table([tmp_path / "old.csv", tmp_path / "new.csv"], tmp_path / "both", described(split=split))
    beside = dlrm_mtl.predict(run, tmp_path / "both/test")
    assert beside is not None
    pd.testing.assert_frame_equal(joined[["click", "good"]], beside.to_pandas())
    prepare_like([tmp_path / "new.csv"], tmp_path / "labelled", folder)
    of_both = dlrm_mtl.evaluate(run, input=tmp_path / "both/test")
    of_later = dlrm_mtl.evaluate(run, input=tmp_path / "labelled/test")
    assert of_later == pytest.approx(of_both, rel=0, abs=0, nan_ok=True)  # precision is nan where nothing is predicted


def test_labels_and_kept_columns_may_be_absent(shop: tuple[Path, pd.DataFrame, pd.DataFrame], tmp_path: Path) -> None:
    folder, _, new = shop
    (tmp_path / "raw").mkdir()
    new[:40].drop(columns=["grade"]).to_csv(tmp_path / "raw/a.csv", index=False)
    new[40:].drop(columns=["click", "order"]).to_csv(tmp_path / "raw/b.csv", index=False)
    (tmp_path / "raw/README").write_text("passed over")
    _, passed_over, *left_out = prepare_like([tmp_path / "raw"], tmp_path / "out", folder)[:5]
    assert "README' passed over" in passed_over
    assert left_out == [
        f"remark: label 'click' is left out: {tmp_path}/raw/b.csv has no column 'click'; predict needs no labels",
        f"remark: label 'good' is left out: {tmp_path}/raw/a.csv has no column 'grade'; predict needs no labels",
        f"remark: 'order' is not kept: {tmp_path}/raw/b.csv has no column 'order'",
    ]
    assert pq.read_schema(tmp_path / "out/test/part-00000.parquet").names == ["user", "item", "seen", "price", "age"]
    assert open_dataset(tmp_path / "out").spec.labels == []


@pytest.mark.parametrize(("values", "wanted"), [(["1.0", "2"], [1, 0]), (["1.0", "x"], [1, 0])])
def test_whether_texts_are_numbers_is_what_the_earlier_rows_say(
    tmp_path: Path, values: list[str], wanted: list[int]
) -> None:
    """The earlier rows hold versions, of which 1 and 1.0 are two; then numbers, of which they are one."""
    content = {"features": [{"name": "item", "kind": "sparse"}], "labels": [{"name": "click"}]}
    split = {"name": "random", "shares": {"train": 1.0}}
    for name, earlier in (("versions", ["1.0", "1.0", "b"]), ("numbers", ["1", "1", "3"])):
        pq.write_table(pa.table({"item": earlier, "click": [0, 1, 0]}), tmp_path / f"{name}.parquet")
        prepare_table([tmp_path / f"{name}.parquet"], tmp_path / name, described(**content, split=split))
        pq.write_table(pa.table({"item": values}), tmp_path / f"{name}_later.parquet")
        prepare_like([tmp_path / f"{name}_later.parquet"], tmp_path / f"{name}_out", tmp_path / name)
        assert [row["item"] for row in rows_of(tmp_path / f"{name}_out")] == wanted
    pq.write_table(pa.table({"item": pa.array([1, 3])}), tmp_path / "integers.parquet")
    prepare_like([tmp_path / "integers.parquet"], tmp_path / "integers", tmp_path / "versions")
    assert [row["item"] for row in rows_of(tmp_path / "integers")] == [0, 0]


def test_mistakes_are_one_sentence(shop: tuple[Path, pd.DataFrame, pd.DataFrame], tmp_path: Path) -> None:
    folder, _, new = shop
    new.to_csv(tmp_path / "new.csv", index=False)

    def refused(match: str, place: Path = folder) -> None:
        with pytest.raises(UserError, match=match) as error:
            prepare_like([tmp_path / "new.csv"], tmp_path / "out", place)
        assert str(error.value).endswith(".")
        assert not (tmp_path / "out").exists()

    def damaged(name: str, content: bytes | None) -> Path:
        copy = tmp_path / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
        return copy

    refused("holds no table.yaml, which says how its rows were made; earlier versions", damaged("table.yaml", None))
    refused("damaged/table.yaml: format: 2", damaged("table.yaml", b"format: 2\ndescription: {}\n"))
    written = yaml.safe_load((folder / "table.yaml").read_text())
    del written["description"]["features"][-1]
    refused("does not say how column 'age'", damaged("table.yaml", yaml.safe_dump(written).encode()))
    refused("vocabularies.parquet: cannot be read", damaged("vocabularies.parquet", None))
    refused("vocabularies.parquet: cannot be read", damaged("vocabularies.parquet", b"PAR1 nothing PAR1"))
    copy = damaged("dataset.yaml", (folder / "dataset.yaml").read_bytes())
    table = pq.read_table(folder / "vocabularies.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), copy / "vocabularies.parquet")
    refused("feature 'item' has other values or ids than dataset.yaml says; it is not what `prepare table` wrote", copy)
    refused("there is no such folder; --like must name", tmp_path / "none")
    new.drop(columns=["price"]).to_csv(tmp_path / "new.csv", index=False)
    refused("new.csv: there is no column 'price'")
    new.assign(price="cheap").to_csv(tmp_path / "new.csv", index=False)
    refused(
        r"new.csv: row 1: column 'price' holds 'cheap'.* name the text in source.nulls.*; source stands in .*table.yaml\."
    )
    new.to_csv(tmp_path / "new.csv", index=False, sep=";")
    refused("there is no column 'user'")
    for options in ({"description": "d.yaml"}, {"infer": tmp_path / "new.csv"}):
        with pytest.raises(UserError, match="--like"):
            prepare([tmp_path / "new.csv"], tmp_path / "out", like=str(folder), **options)  # type: ignore[arg-type]


def test_on_an_object_store(
    bucket: fs.S3FileSystem, shop: tuple[Path, pd.DataFrame, pd.DataFrame], call: Call, tmp_path: Path
) -> None:
    folder, _, new = shop
    (tmp_path / "made").mkdir()
    (tmp_path / "made/d.yaml").write_text(yaml.safe_dump(CONTENT))
    s3.upload(tmp_path / "made", bucket, "bucket/made")
    options = ("--input", tmp_path / "old.csv", "--output", "s3://bucket/shop")
    code, said = call("prepare", "table", "--description", "s3://bucket/made/d.yaml", *options)
    assert code == 0, said
    new.to_csv(tmp_path / "new.csv", index=False)
    options = ("--input", tmp_path / "new.csv", "--output", "s3://bucket/new")
    code, said = call("prepare", "table", "--like", "s3://bucket/shop", *options)
    assert code == 0, said
    assert "predict RUN --input s3://bucket/new/test" in said
    prepare_like([tmp_path / "new.csv"], tmp_path / "here", folder)
    with bucket.open_input_file("bucket/new/test/part-00000.parquet") as stream:
        assert pq.read_table(stream).to_pylist() == rows_of(tmp_path / "here")
    code, said = call("prepare", "table", "--description", "s3://bucket/made/no.yaml", *options[:3], "s3://bucket/no")
    assert (code, said.count("\n")) == (2, 1)
    assert "s3://bucket/made/no.yaml: there is no such file; check --description." in said


TEXTS = st.text(min_size=1, max_size=8)


@given(
    TEXTS, st.lists(TEXTS, max_size=3), st.one_of(st.none(), st.sampled_from("'|")), st.sampled_from([0, 1e-7, -3.5e30])
)
@example(":\xa0", ["\xa0"], None, 0)
@settings(max_examples=60, deadline=None)
def test_what_is_kept_of_a_description_is_all_of_it(
    name: str, nulls: list[str], quote: str | None, fill: float
) -> None:
    features = [{"name": "x", "kind": "dense", "column": name, "fill": fill}, {"name": "i", "kind": "ignore"}]
    source = {"nulls": [text for text in nulls if (quote or "") not in text or not quote], "quote": quote}
    description = described(name=name, features=features, source=source)
    with tempfile.TemporaryDirectory() as folder:
        write_recipe(Path(folder), Table(None, Path(folder)), description)  # type: ignore[arg-type]
        content = parse_yaml((Path(folder) / "table.yaml").read_text(encoding="utf-8"))
    assert validate(Recipe, content, "table.yaml").description == description
