"""Drafts of descriptions: what is recognised, and that a draft with a label prepares the table as it stands."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.core.yaml_text import parse_yaml
from dlrm_mtl.prepare.table.adapter import prepare, prepare_table
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.prepare.table.infer import draft
from tests.prepare.tables import read_all, write_csv


def drafted(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(draft(path))
    return content


def kinds(content: dict[str, Any]) -> dict[str, str]:
    return {feature["name"]: feature["kind"] for feature in content["features"]}


def log(count: int = 500) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [
        {
            "row_id": f"{position:08d}x",
            "user_id": rng.randrange(90),
            "city": rng.choice(["Köln", "New York", "東京"]),
            "device": rng.randrange(4),
            "tags": "|".join(rng.sample(["home", "light", "office"], rng.randrange(1, 4))),
            "last_items": " ".join(str(rng.randrange(30)) for _ in range(5)),
            "price": round(rng.uniform(0, 50), 2),
            "view_count": rng.randrange(10**6),
            "constant": 1,
            "timestamp": 1_700_000_000 + position * 60,
            "is_click": rng.randrange(2),
            "rating": rng.randrange(1, 6),
            "income": rng.choice([" 50000+."] + ["- 50000."] * 5),
        }
        for position in range(count)
    ]


def test_columns_of_a_csv_file(tmp_path: Path) -> None:
    content = drafted(write_csv(tmp_path / "log.csv", log()))
    assert kinds(content) == {
        "row_id": "keep",
        "user_id": "sparse",
        "city": "sparse",
        "device": "sparse",
        "tags": "sparse",
        "last_items": "sequence",
        "price": "dense",
        "view_count": "dense",
        "constant": "ignore",
        "timestamp": "ignore",
        "is_click": "ignore",
        "rating": "ignore",
        "income": "ignore",
    }
    features = {feature["name"]: feature for feature in content["features"]}
    assert features["tags"]["separator"] == "|"
    assert features["last_items"]["separator"] == " "
    assert content["labels"] == [
        {"name": "is_click"},
        {"name": "good_rating", "where": "rating >= 4"},
        {"name": "rating", "kind": "real"},
        {"name": "income", "where": 'income == " 50000+."'},
    ]
    assert content["split"]["column"] == "timestamp"


def test_a_draft_prepares_the_table(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv.gz", log())
    said = prepare(infer=path, output=tmp_path / "log.yaml")
    assert f"--description {tmp_path / 'log.yaml'}" in said
    prepare([path], tmp_path / "out", description=tmp_path / "log.yaml")
    assert read_all(tmp_path / "out") == {"train": 400, "validation": 50, "test": 50}
    with pytest.raises(UserError, match="already exists"):
        prepare(infer=path, output=tmp_path / "log.yaml")


@pytest.mark.parametrize(
    ("separator", "encoding"), [(";", "utf-8"), ("\t", "utf-16"), ("::", "utf-8"), (",", "cp1252")]
)
def test_separators_and_encodings(tmp_path: Path, separator: str, encoding: str) -> None:
    entries = [{**row, "city": "Köln"} for row in log(50)]
    content = drafted(write_csv(tmp_path / "log.csv", entries, encoding, separator))
    assert list(kinds(content)) == list(entries[0])
    assert content.get("source", {}).get("separator", ",") == separator


def test_without_header(tmp_path: Path) -> None:
    rng = random.Random(1)
    lines = [
        f"{rng.randrange(2)}\t{rng.randrange(-2, 90)}\t{rng.randrange(16**8):08x}\t{rng.choice(['', 'a', 'b'])}"
        for _ in range(300)
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    content = drafted(tmp_path / "train.txt")
    assert content["source"] == {"separator": "\t", "header": False, "columns": ["c0", "c1", "c2", "c3"]}
    assert content["labels"] == [{"name": "c0"}]
    assert kinds(content) == {"c0": "ignore", "c1": "dense", "c2": "ignore", "c3": "sparse"}


def test_parquet(tmp_path: Path) -> None:
    entries = [{**row, "tags": row["tags"].split("|"), "history": [row["device"]]} for row in log(100)]
    pq.write_table(pa.Table.from_pylist(entries), tmp_path / "log.parquet")
    content = drafted(tmp_path / "log.parquet")
    assert "source" not in content
    assert kinds(content)["tags"] == "sparse"
    assert kinds(content)["history"] == "sequence"
    prepare_table([tmp_path / "log.parquet"], tmp_path / "out", validate(TableDescription, content, "draft"))


def test_without_a_label_the_draft_says_what_to_do(tmp_path: Path) -> None:
    entries = [{"user": row["user_id"], "price": row["price"]} for row in log(50)]
    text = draft(write_csv(tmp_path / "log.csv", entries))
    assert "# No column looks like a label." in text
    assert "labels" not in yaml.safe_load(text)


@pytest.mark.parametrize(
    "values", [("0", "inf"), ("-inf", "1"), ("1", "1e999"), ("2", "1_0"), ("3", "nan"), ("4", "5")]
)
@pytest.mark.parametrize("name", ["click", "rating"])
def test_labels_with_odd_numbers(tmp_path: Path, name: str, values: tuple[str, str]) -> None:
    entries = [{"user": f"u{row % 7}", name: values[row % 3 == 0]} for row in range(60)]
    path = write_csv(tmp_path / "log.csv", entries)
    content = parse_yaml(draft(path))
    if "labels" in content:
        prepare_table([path], tmp_path / "out", validate(TableDescription, content, "draft"))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a,b\n", gzip.compress(b"a,b\n1,2\n", mtime=0)[:15], b"\x1f\x8b"])
def test_files_without_rows_are_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.csv: .*\.$"):
        draft(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("criteo/criteo_indexed_train_10k.csv.gz", {"name": "c0"}),
        ("criteo/criteo_kaggle_head1000.txt.gz", {"name": "c0"}),
        ("aliexpress/aliexpress_train_sample.csv", {"name": "click"}),
    ],
)
def test_real_files(repository: Path, tmp_path: Path, name: str, label: dict[str, str]) -> None:
    path = Path(os.environ.get("DLRM_MTL_RAW_DATA", repository.parent / "shared" / "data")) / name
    if not path.is_file():
        pytest.skip(f"{path}: the raw data are not there (set DLRM_MTL_RAW_DATA)")
    content = drafted(path)
    assert content["labels"][0] == label
    prepare_table([path], tmp_path / "out", validate(TableDescription, content, "draft"))
    assert sum(read_all(tmp_path / "out").values()) in (10_000, 1000, 100)
