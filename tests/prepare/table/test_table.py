"""``prepare table``: what it writes agrees with a second implementation in plain Python, row by row."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.spec import DenseStatistics
from dlrm_mtl.prepare.table.adapter import prepare, prepare_table
from tests.prepare.tables import DESCRIPTION, description, read_all, rows, write_csv

ROWS = 400


def hashed(feature: str, value: str, size: int) -> int:
    return 1 + int(hashlib.md5(f"0:{feature}:{value}".encode()).hexdigest()[:15], 16) % (size - 1)


def in_training(row: int) -> bool:
    return int(hashlib.md5(f"0:split:{row}".encode()).hexdigest()[:15], 16) < round(0.6 * 2**60)


def numbered(counts: Counter[str], min_count: int = 1) -> dict[str, int]:
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0].encode()))
    return {value: position for position, (value, count) in enumerate(ranked, start=1) if count >= min_count}


def expected(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Expected output of every row, by the meaning of DESCRIPTION."""
    training = [row for position, row in enumerate(entries) if in_training(position)]
    products = Counter(row["product"] for row in training if row["product"])
    products += Counter(value for row in training for value in row["seen"].split()[-2:])
    product, tag = numbered(products, 2), numbered(Counter(t for r in training for t in r["tags"].split("|")[:3] if t))

    def real(text: str) -> float | None:
        return float(text) if text else None

    def logarithm(text: str) -> float | None:
        if not text:
            return None
        value = min(max(float(text), -5), 500)
        return math.copysign(math.log1p(abs(value)), value)

    return [
        {
            "user": hashed("user", row["user"], 50),
            "product": product.get(row["product"], 0),
            "tags": [tag.get(t, 0) for t in row["tags"].split("|")[:3] if t] or None,
            "seen": [product.get(value, 0) for value in row["seen"].split()[-2:]] or None,
            "price": logarithm(row["cost"]),
            "age": real(row["age"] or "30"),
            "click": real(row["click"]),
            # or: true if one is true, null if the other is null, as in SQL
            "rich": 1 if row["income"] == " 50000+." else (float(row["price"]) > 90 if row["price"] else None),
            "seconds": real(row["seconds"]),
        }
        for row in entries
    ]


def written(folder: Path, split: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / split).to_pylist()  # type: ignore[no-any-return]


def compare(folder: Path, entries: list[dict[str, Any]]) -> None:
    wanted = expected(entries)
    for split, inside in (("train", True), ("test", False)):
        chosen = [row for position, row in enumerate(wanted) if in_training(position) == inside]
        got = written(folder, split)
        assert len(got) == len(chosen)
        for one, other in zip(got, chosen, strict=True):
            assert one == {**other, "price": pytest.approx(other["price"])}


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
@pytest.mark.parametrize("threads", [1, 4])
def test_csv(tmp_path: Path, ending: str, threads: int) -> None:
    entries = rows(ROWS)
    write_csv(tmp_path / f"raw/b{ending}", entries[150:])
    write_csv(tmp_path / f"raw/a{ending}", entries[:150])
    assert prepare_table([tmp_path / "raw"], tmp_path / "out", description(), threads=threads) == []
    compare(tmp_path / "out", entries)
    assert read_all(tmp_path / "out") == {
        "train": sum(map(in_training, range(ROWS))),
        "test": ROWS - sum(map(in_training, range(ROWS))),
    }


def test_parquet_gives_the_same(tmp_path: Path) -> None:
    entries = rows(ROWS)
    table = pa.Table.from_pylist(entries, pa.schema([(name, pa.string()) for name in entries[0]]))
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=70)
    prepare_table([tmp_path / "all.parquet"], tmp_path / "out", description())
    compare(tmp_path / "out", entries)


def test_parquet_with_types_of_its_own(tmp_path: Path) -> None:
    entries = rows(ROWS)
    nulls = {"product": None, "cost": None}
    typed = [
        {
            **row,
            "product": row["product"] or nulls["product"],
            "cost": float(row["cost"]) if row["cost"] else None,
            "age": int(row["age"]) if row["age"] else None,
            "tags": [tag for tag in row["tags"].split("|") if tag],
            "seen": row["seen"].split(),
            "click": row["click"] == "1" if row["click"] else None,
        }
        for row in entries
    ]
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "typed.parquet")
    features = [{k: v for k, v in f.items() if k != "separator"} for f in DESCRIPTION["features"]]
    prepare_table([tmp_path / "typed.parquet"], tmp_path / "out", description(features=features))
    compare(tmp_path / "out", entries)


@pytest.mark.parametrize(
    ("encoding", "separator", "source"),
    [
        ("utf-16", ",", {}),
        ("gbk", ";", {}),
        ("utf-8-sig", "\t", {"encoding": "utf-8"}),
        ("utf-8", "::", {"encoding": "utf-8"}),
    ],
)
def test_encodings_and_separators(tmp_path: Path, encoding: str, separator: str, source: dict[str, str]) -> None:
    entries = [{**row, "product": row["product"].replace("ü", "u")} for row in rows(ROWS)]
    write_csv(tmp_path / "raw.csv", entries, encoding, separator)
    described = description(source={"encoding": encoding, "separator": separator, **source})
    prepare_table([tmp_path / "raw.csv"], tmp_path / "out", described)
    compare(tmp_path / "out", entries)


def test_without_header_and_with_null_texts(tmp_path: Path) -> None:
    entries = rows(ROWS)
    shown = [{**row, "cost": row["cost"] or "NA", "age": row["age"] or "?"} for row in entries]
    path = write_csv(tmp_path / "raw.csv", shown)
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    source = {"header": False, "columns": list(entries[0]), "nulls": ["", "NA", "?"]}
    prepare_table([path], tmp_path / "out", description(source=source))
    compare(tmp_path / "out", entries)


def test_malformed_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    entries = rows(ROWS)
    path = write_csv(tmp_path / "raw.csv", entries)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:5], b"too,few", *lines[5:9], lines[9] + b",x", *lines[9:]]))
    remarks = prepare_table([path], tmp_path / "out", description(source={"malformed": "skip"}))
    assert remarks == [f"remark: {path}: 2 malformed lines were skipped, the first is line 6"]
    compare(tmp_path / "out", entries)


def test_splits(tmp_path: Path) -> None:
    entries = rows(ROWS)
    path = write_csv(tmp_path / "a.csv", entries)
    write_csv(tmp_path / "b.csv", entries[:50])

    def counts(name: str, split: dict[str, Any], inputs: list[Path]) -> dict[str, int]:
        prepare_table(inputs, tmp_path / name, description(split=split))
        return read_all(tmp_path / name)

    before = sum(row["day"] < "2024-03-20" for row in entries)
    by_time = {"name": "time", "column": "day", "cuts": {"test": "2024-03-20"}}
    assert counts("time", by_time, [path]) == {"train": before, "test": ROWS - before}
    shares = counts("shares", {"name": "time", "column": "day", "shares": {"train": 0.7, "test": 0.3}}, [path])
    assert shares["train"] == pytest.approx(0.7 * ROWS, abs=ROWS / 28)
    users = counts("user", {"name": "user", "column": "user", "shares": {"train": 0.7, "test": 0.3}}, [path])
    found = [{row["user"] for row in written(tmp_path / "user", split)} for split in users]
    assert not found[0] & found[1]
    files = {"name": "files", "files": {"train": ["a.*"], "test": ["b.csv"]}}
    assert counts("files", files, [tmp_path / "a.csv", tmp_path / "b.csv"]) == {"train": ROWS, "test": 50}


@pytest.mark.parametrize(
    ("others", "said"), [(1, "' is in no split and is"), (5, " and 2 more are in no split and are")]
)
def test_files_that_are_in_no_split_are_counted(tmp_path: Path, others: int, said: str) -> None:
    for name in ("a", "b", *(f"c{number}" for number in range(others))):
        write_csv(tmp_path / f"raw/{name}.csv", rows(40))
    split = {"name": "files", "files": {"train": ["a.csv"]}, "divide": {"b.csv": {"validation": 0.5, "test": 0.5}}}
    (remark,) = prepare_table([tmp_path / "raw"], tmp_path / "out", description(split=split))
    assert remark.startswith(f"remark: '{tmp_path}/raw/c0.csv'")
    assert f"{said} left out; name it in split.files" in remark
    assert sum(read_all(tmp_path / "out").values()) == 80


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "raw/a.csv", rows(40))
    write_csv(tmp_path / "raw/b.csv", rows(40))
    prepare_table([path, tmp_path / "raw", path], tmp_path / "out", description())
    assert sum(read_all(tmp_path / "out").values()) == 80


def test_statistics_are_those_of_the_training_rows(tmp_path: Path) -> None:
    entries = rows(ROWS)
    prepare_table([write_csv(tmp_path / "raw.csv", entries)], tmp_path / "out", description())
    spec = open_dataset(tmp_path / "out").spec
    known = [row["price"] for n, row in enumerate(expected(entries)) if in_training(n) and row["price"] is not None]
    price = spec.feature("price").statistics
    assert isinstance(price, DenseStatistics)
    assert price.mean == pytest.approx(sum(known) / len(known), rel=1e-5)
    assert spec.feature("age").statistics is None  # standardise: false
    assert spec.feature("seen").vocabulary == "product"
    assert spec.vocabulary_size("user") == 50
    transforms = {feature.name: feature.transform for feature in spec.features if feature.transform}
    assert transforms == {"price": "clip -5 500, signed_log", "age": "fill 30"}
    names = {row["value"]: row["id"] for row in pq.read_table(tmp_path / "out/vocabularies.parquet").to_pylist()}
    assert names["rug, large"] > 0


def test_fingerprints_tell_vocabularies_apart(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "raw.csv", rows(ROWS))

    def fingerprints(folder: str) -> dict[str, str | None]:
        prepare_table([path], tmp_path / folder, description())
        return {feature.name: feature.fingerprint for feature in open_dataset(tmp_path / folder).spec.features}

    first = fingerprints("first")
    assert (first["user"], first["seen"], first["price"]) == ("hash, seed 0", None, None)
    assert first == fingerprints("again")
    write_csv(path, [{**row, "product": row["product"].replace("lamp", "lampe")} for row in rows(ROWS)])
    changed = fingerprints("changed")
    assert changed["product"] != first["product"]
    assert changed["tags"] == first["tags"]
    values = open_dataset(tmp_path / "changed").spec.vocabulary_size("product") - 1
    assert str(changed["product"]).startswith(f"{values} values, ")


def test_a_label_without_positives_is_allowed_with_a_remark(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "raw.csv", rows(ROWS))
    labels = [
        {"name": "click"},
        {"name": "never", "where": "seconds > 1e30"},
        {"name": "always", "where": "seconds < 1e30 or seconds is null"},
    ]
    (one, other) = prepare_table([path], tmp_path / "out", description(labels=labels))
    assert "'never' is never 1" in one
    assert "'always' is always 1" in other
    read_all(tmp_path / "out")


@pytest.mark.parametrize("where", ['income == "50000+."', 'income in ("50000+.", "x")', 'not income == "50000+."'])
def test_a_text_that_never_comes_is_refused_before_anything_is_written(tmp_path: Path, where: str) -> None:
    path = write_csv(tmp_path / "raw.csv", rows(ROWS))
    labels = [{"name": "click"}, {"name": "rich", "where": where}]
    with pytest.raises(UserError, match=r"column 'income' never holds '50000\+\.'; it holds ' 50000\+\.'"):
        prepare_table([path], tmp_path / "out", description(labels=labels))
    assert not (tmp_path / "out").exists()


def test_the_same_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "raw.csv", rows(3000))
    for threads in (1, 3):
        prepare_table([path], tmp_path / f"out{threads}", description(), threads=threads)
    for name in ("dataset.yaml", "train/part-00000.parquet", "test/part-00000.parquet", "vocabularies.parquet"):
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out3" / name).read_bytes(), name


def test_long_lists_are_numbered_chunk_by_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrm_mtl.prepare.table.ids.CHUNK_ROWS", 37)
    entries = rows(ROWS)
    prepare_table([write_csv(tmp_path / "raw.csv", entries)], tmp_path / "out", description())
    compare(tmp_path / "out", entries)


def test_as_the_command_calls_it(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "raw.csv", rows(ROWS))
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(DESCRIPTION))
    said = prepare([path], tmp_path / "out", description=tmp_path / "d.yaml", memory="200MB", threads=1)
    assert said.startswith(f"{tmp_path / 'out'}: ready")
    assert {entry.name for entry in tmp_path.iterdir()} == {"raw.csv", "d.yaml", "out"}
