"""Everyday tables, as people have them: what the draft makes of them, and that it prepares them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.prepare.table.adapter import prepare, prepare_table
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.prepare.table.infer import draft, draft_table
from tests.prepare.tables import read_all

Entry = dict[str, Any]


def drafted(path: Path, text: str, columns: list[str] | None = None) -> Entry:
    path.write_text(text)
    content: Entry = yaml.safe_load(draft(path, columns))
    return content


def prepared(path: Path, content: Entry) -> dict[str, list[Any]]:
    """The rows that the draft makes, of all splits, with values in place of ids."""
    out = path.parent / f"{path.name}.out"
    prepare_table([path], out, validate(TableDescription, content, "draft"))
    read_all(out)
    columns: dict[str, list[Any]] = {}
    for split in sorted(out.iterdir()):
        if split.is_dir():
            for name, values in pq.read_table(split).to_pydict().items():
                columns.setdefault(name, []).extend(values)
    return columns


def features(content: Entry) -> dict[str, Entry]:
    return {feature["name"]: feature for feature in content["features"]}


def vocabulary(path: Path, feature: str) -> set[str]:
    rows = pq.read_table(path.parent / f"{path.name}.out" / "vocabularies.parquet").to_pylist()
    return {row["value"] for row in rows if row["feature"] == feature}


def lines(header: str, row: Any, count: int = 200) -> str:
    return "\n".join([header, *(row(i) for i in range(count))]) + "\n"


@pytest.mark.parametrize(
    ("header", "remark"),
    [
        (",user,price,click", "the first column has no name and is left out: an index"),
        ('"","user","price","click"', "the first column has no name and is left out: an index"),
        (",,user,price,click", None),
        ("user,price,click,", "the last column has no name and is left out"),
        ("user,price,click", None),
        ("# exported 2024-01-31\nuser,price,click", "the first line before the table passed over"),
        ("sep=,\nuser,price,click", "the first line before the table passed over"),
        ("Report\n\nfor March, 2024\nuser,price,click", "the first 3 lines before the table passed over"),
    ],
)
def test_headers(tmp_path: Path, header: str, remark: str | None) -> None:
    before, after = "", ""
    names = header.splitlines()[-1]
    before = (
        "{i}," * (len(names) - len(names.lstrip(","))) if names.startswith(",") else "{i}," if names[0] == '"' else ""
    )
    after = "," if names.endswith(",") else ""
    text = lines(header, lambda i: before.replace("{i}", str(i)) + f"u{i % 9},{i % 17},{i % 2}" + after)
    content = drafted(tmp_path / "x.csv", text)
    assert list(features(content)) == ["user", "price", "click"]
    assert content["labels"] == [{"name": "click"}]
    assert len(prepared(tmp_path / "x.csv", content)["click"]) == 200
    if remark:
        assert any(remark in one for one in draft_table(tmp_path / "x.csv").remarks)


def test_a_header_one_short_of_the_rows_names_all_but_the_first(tmp_path: Path) -> None:
    """As R's write.table writes row names."""
    content = drafted(
        tmp_path / "x.csv", lines('"user","price","click"', lambda i: f'"{i}","u{i % 9}",{i % 17},{i % 2}')
    )
    assert content["source"] == {"header": False, "skip": 1, "columns": ["row_name", "user", "price", "click"]}
    assert features(content)["row_name"]["kind"] == "keep"
    assert sorted(set(prepared(tmp_path / "x.csv", content)["click"])) == [0, 1]


@pytest.mark.parametrize(
    ("first", "header"),
    [
        ("u1,i3,yes", False),
        ("2024-01-31T10:00:00,u1,yes", False),
        ("user,item,liked", True),
        ("user,7,clicked", True),
        ("NA,i3,yes", False),
        ("0,1,2", True),  # as pandas writes an array
        ("7,i3,1", False),
    ],
)
def test_whether_the_first_line_is_a_header(tmp_path: Path, first: str, header: bool) -> None:
    rng = random.Random(0)
    kinds = ["time", "user"] if "T10" in first else ["number"] if first in ("0,1,2", "user,7,clicked") else ["user"]
    rows = []
    for position in range(300):
        start = f"2024-01-31T10:{position % 60:02d}:00" if "time" in kinds else f"u{rng.randrange(9)}"
        if first == "7,i3,1" or first == "0,1,2":
            start = str(rng.randrange(9))
        middle = f"u{rng.randrange(9)}" if "time" in kinds else f"i{rng.randrange(9)}"
        if "number" in kinds:
            middle = str(rng.randrange(50))
        end = str(rng.randrange(2)) if "number" in kinds or first.endswith(",1") else rng.choice(["yes", "no"])
        rows.append(f"{start},{middle},{end}")
    content = drafted(tmp_path / "x.csv", "\n".join([first, *rows]))
    assert ("columns" not in content.get("source", {})) == header


@pytest.mark.parametrize(
    ("separator", "number", "source"),
    [
        (";", "{0},{1}", {"decimal": ","}),
        ("\t", "{0},{1}", {"decimal": ","}),
        (",", '"{0},{1}"', {"decimal": ","}),
        (";", "1.{0:03d},{1}", {"decimal": ",", "thousands": "."}),
        (",", '"1,{0:03d}.{1}"', {"thousands": ","}),
        (",", '"1,{0:03d}"', {"thousands": ","}),
    ],
)
def test_how_numbers_are_written(tmp_path: Path, separator: str, number: str, source: Entry) -> None:
    rows = lines(
        separator.join(["user", "price", "click"]),
        lambda i: separator.join([f"u{i % 9}", number.format(i % 17, i % 90 + 10), str(i % 2)]),
    )
    content = drafted(tmp_path / "x.csv", rows)
    found = dict(content["source"])
    found.pop("separator", None)
    assert found == source
    assert features(content)["price"]["kind"] == "dense"
    content["features"][1] = {"name": "price", "kind": "dense"}
    got = sorted(prepared(tmp_path / "x.csv", content)["price"])
    plain = {
        "{0},{1}": lambda i: float(f"{i % 17}.{i % 90 + 10}"),
        "1.{0:03d},{1}": lambda i: float(f"1{i % 17:03d}.{i % 90 + 10}"),
        "1,{0:03d}.{1}": lambda i: float(f"1{i % 17:03d}.{i % 90 + 10}"),
        "1,{0:03d}": lambda i: float(f"1{i % 17:03d}"),
    }[number.strip('"')]
    assert got == pytest.approx(sorted(plain(i) for i in range(200)))


def test_decimal_commas_in_each_column_are_no_separators(tmp_path: Path) -> None:
    content = drafted(tmp_path / "x.csv", lines("a;b;y", lambda i: f"{i % 7},5;{i % 9},25;{i % 2}")[6:])
    assert content["source"]["separator"] == ";"
    assert content["source"]["decimal"] == ","


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ("[{0}, {1}, {2}]", "numbers"),
        ("[{0},{1},{2}]", "numbers"),
        ("['{0}', '{1}', '{2}']", "numbers"),
        ('[""{0}"", ""{1}"", ""{2}""]', "numbers"),
        ("[{0} {1}  {2}]", "numbers"),
        ("({0}, {1}, {2})", "numbers"),
        ("{{{0}; {1}; {2}}}", "numbers"),
        ("['x, {0}', None, '{1}']", "texts"),
    ],
)
def test_lists_in_brackets(tmp_path: Path, value: str, entries: str) -> None:
    text = lines("user,hist,click", lambda i: f'u{i % 9},"{value.format(i % 5, i % 7, i % 3)}",{i % 2}')
    content = drafted(tmp_path / "x.csv", text)
    assert features(content)["hist"]["kind"] == "sequence"
    assert features(content)["hist"]["brackets"] is True
    prepared(tmp_path / "x.csv", content)
    wanted = {str(i) for i in range(7)}
    assert vocabulary(tmp_path / "x.csv", "hist") == (
        wanted if entries == "numbers" else wanted | {f"x, {i}" for i in range(5)}
    )


@pytest.mark.parametrize("missing", ["NaN", "nan", "NA", "?", "None", "null", "\\N", "-", "inf", "#N/A"])
def test_texts_for_missing_numbers(tmp_path: Path, missing: str) -> None:
    content = drafted(
        tmp_path / "x.csv", lines("user,price,click", lambda i: f"u{i % 9},{missing if i % 4 == 0 else i % 17},{i % 2}")
    )
    assert missing in content["source"]["nulls"]
    assert features(content)["price"]["kind"] == "dense"
    assert prepared(tmp_path / "x.csv", content)["price"].count(None) == 50


def census(count: int = 2000) -> list[list[str]]:
    """Rows like those of the census of incomes that is public: 42 columns, no header, a survey weight, `?` for unknown."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        age = min(90, max(0, round(rng.gauss(38, 18))))
        worked = rng.choice([0] * 6 + [52] * 6 + [40, 50, 30, 20, 10, 45, 35, 25, 15, 5] * 2 + [rng.randrange(53)])
        row = [str(age), rng.choice(["Private", "Not in universe"]), str(rng.randrange(52)), str(rng.randrange(47))]
        row += [rng.choice(["Children", "High school graduate"]), str(rng.choice([0] * 9 + [rng.randrange(100, 9999)]))]
        row += [rng.choice(["Not in universe", "?", "Full-time"]) for _ in range(10)]
        row += [str(rng.choice([0] * 5 + [rng.randrange(100, 99999)])) for _ in range(3)]
        row += [rng.choice(["A", "B", "C"]) for _ in range(5)]
        row += [f"{rng.uniform(40, 9000):.2f}"]
        row += [rng.choice(["?", "Mexico", "United-States"]) for _ in range(14)]
        row += [str(worked), rng.choice(["94", "95"]), rng.choice(["- 50000."] * 9 + ["50000+."])]
        assert len(row) == 42
        rows.append(row)
    return rows


def test_a_table_of_42_columns_without_names(tmp_path: Path) -> None:
    content = drafted(tmp_path / "census.data", "\n".join(", ".join(row) for row in census()))
    assert content["source"]["strip"] is True
    assert content["source"]["nulls"] == ["", "?"]
    assert len(content["source"]["columns"]) == 42
    assert content["labels"] == [{"name": "c41", "where": 'c41 == "50000+."'}]
    kinds = {name: feature["kind"] for name, feature in features(content).items()}
    dense = {name for name, kind in kinds.items() if kind == "dense"}
    assert dense == {"c0", "c5", "c16", "c17", "c18", "c24", "c39"}  # age, amounts of money, the weight, weeks of work
    assert kinds["c2"] == kinds["c3"] == kinds["c40"] == "sparse"
    got = prepared(tmp_path / "census.data", content)
    assert 0.05 < sum(got["c41"]) / 2000 < 0.15


def test_names_from_the_command_line(tmp_path: Path) -> None:
    rows = "\n".join(", ".join(row) for row in census(300))
    (tmp_path / "census.data").write_text(rows)
    names = [f"x{position}" for position in range(42)]
    names[0], names[5], names[24], names[39], names[41] = "age", "wage per hour", "instance weight", "weeks", "income"
    prepare(infer=tmp_path / "census.data", output=tmp_path / "d.yaml", columns=",".join(names))
    content = yaml.safe_load((tmp_path / "d.yaml").read_text())
    kinds = {name: feature["kind"] for name, feature in features(content).items()}
    assert (kinds["age"], kinds["wage per hour"], kinds["weeks"]) == ("dense", "dense", "dense")
    assert kinds["instance weight"] == "ignore"
    assert content["labels"] == [{"name": "income", "where": 'income == "50000+."'}]
    prepare([tmp_path / "census.data"], tmp_path / "out", description=tmp_path / "d.yaml")
    read_all(tmp_path / "out")
    for columns, sentence in (
        ("a,b", "--columns: there are 2 names, and .* has 42 columns"),
        ("a,,b", "these are no names"),
        (",".join(["a"] * 42), "these are no names"),
    ):
        with pytest.raises(UserError, match=sentence):
            prepare(infer=tmp_path / "census.data", columns=columns)
    with pytest.raises(UserError, match="--columns goes with --infer"):
        prepare([tmp_path / "census.data"], tmp_path / "o", description=tmp_path / "d.yaml", columns="a,b")


def test_names_that_the_file_has(tmp_path: Path) -> None:
    text = lines("user,click", lambda i: f"u{i % 9},{i % 2}")
    assert "source" not in drafted(tmp_path / "x.csv", text, ["user", "click"])
    drafted(tmp_path / "x.csv", text, ["a", "b"])
    assert any("looks like a header" in one for one in draft_table(tmp_path / "x.csv", ["a", "b"]).remarks)


def test_the_last_column_with_two_values_is_a_label_where_no_name_says_so(tmp_path: Path) -> None:
    content = drafted(
        tmp_path / "x.csv", lines("user,color,answer", lambda i: f"u{i % 9},c{i % 3},{'ja' if i % 5 else 'nein'}")
    )
    assert content["labels"] == [{"name": "answer", "where": 'answer == "nein"'}]
    assert any("last column, has two values" in one for one in draft_table(tmp_path / "x.csv").remarks)
    prepared(tmp_path / "x.csv", content)


def packed_zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x.csv"), content)
    return buffer.getvalue()


TABLE = b"user,click\nann,1\n"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", packed_zip(TABLE), "is a zip archive, not a CSV file; unpack it"),
        ("x.csv.bz2", bz2.compress(TABLE), "is compressed by bzip2, not a CSV file; decompress it"),
        ("x.csv.xz", lzma.compress(TABLE), "is compressed by xz"),
        ("x.csv.zst", b"\x28\xb5\x2f\xfd" + TABLE, "is compressed by zstd"),
        ("x.csv.gz", gzip.compress(packed_zip(TABLE), mtime=0), "holds, compressed by gzip, a zip archive"),
        ("x.csv.gz", gzip.compress(b"PAR1" + TABLE, mtime=0), "holds, compressed by gzip, Parquet"),
        ("x.pkl", pickle.dumps([1, 2], protocol=4), "is a Python pickle"),
        ("x.jsonl", b'{"user": 1}\n{"user": 2}\n', "is JSON"),
        ("x.csv", b"<!DOCTYPE html><html>", "is a web page"),
        ("x.csv", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("x.parquet", TABLE * 3, "is text and no Parquet file"),
        ("x.parquet", gzip.compress(TABLE, mtime=0), "is compressed by gzip and no Parquet file"),
        ("x.parquet", packed_zip(TABLE), "is a zip archive, not a Parquet file"),
    ],
)
def test_other_kinds_of_files_are_called_by_their_names(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        draft(tmp_path / name)
    assert sentence in str(raised.value)


def test_parquet_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(lines("user,click", lambda i: f"u{i % 9},{i % 2}"))
    content = yaml.safe_load(draft(tmp_path / "x.csv"))
    prepare_table([tmp_path / "x.csv"], tmp_path / "out", validate(TableDescription, content, "draft"))
    (tmp_path / "part-0").write_bytes((tmp_path / "out/train/part-00000.parquet").read_bytes())
    assert list(features(yaml.safe_load(draft(tmp_path / "part-0")))) == ["user", "click"]


@pytest.mark.parametrize("other", ["README.txt", "notes.txt", "LICENSE", "schema.json", "plot.png", "README.md"])
def test_what_lies_beside_the_tables_of_a_folder(tmp_path: Path, other: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("a", "b"):
        (raw / f"{name}.csv").write_text(lines("user,click", lambda i: f"u{i % 9},{i % 2}"))
    (raw / other).write_text("These data were collected.\nBy us, in March, of all users.\n")
    drafted_ = draft_table(raw)
    assert any(f"{other}' passed over, beside CSV files" in remark for remark in drafted_.remarks)
    (remark,) = prepare_table(
        [raw], tmp_path / "out", validate(TableDescription, yaml.safe_load(drafted_.text), "draft")
    )
    assert f"remark: '{raw / other}' passed over" in remark
    assert sum(read_all(tmp_path / "out").values()) == 400


def test_files_that_are_splits_already(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, count in (("train.csv", 300), ("test.csv", 100)):
        (raw / name).write_text(lines("user,click", lambda i: f"u{i % 9},{i % 2}", count))
    content = yaml.safe_load(draft(raw))
    assert content["split"] == {
        "name": "files",
        "files": {"train": ["train.csv"]},
        "divide": {"test.csv": {"validation": 0.5, "test": 0.5}},
    }
    description = validate(TableDescription, content, "draft")
    assert prepare_table([raw], tmp_path / "out", description) == []
    counts = read_all(tmp_path / "out")
    assert counts["train"] == 300
    assert counts["validation"] + counts["test"] == 100
    assert 30 < counts["test"] < 70
    for split, sentence in (
        (
            {"files": {"train": ["*.csv"], "test": ["test.csv"]}},
            r"name it in split.divide instead, as \{test.csv: ",
        ),
        ({"files": {"train": ["*.csv"]}, "divide": {"test.csv": {"test": 1}}}, "is named in split.files, too"),
        (
            {"files": {"train": ["train.csv"]}, "divide": {"text.csv": {"test": 1}}},
            "no file of --input matches 'text.csv'",
        ),
        ({"files": {"train": ["train.csv"]}, "divide": {"test.csv": {"test": 0.7}}}, "add up to 1"),
    ):
        changed = {**content, "split": {"name": "files", **split}}
        with pytest.raises(UserError, match=sentence):
            prepare_table([raw], tmp_path / "other", validate(TableDescription, changed, "d.yaml"))


LEAKS = {
    "dwell": (lambda i, y: "" if not y else i % 40 + 1, "null exactly where click is 0"),
    "reason": (lambda i, y: f"r{i % 4}" if not y else "", "null exactly where click is 1"),
    "copy": (lambda i, y: y, "equal to click, value for value"),
    "answer": (lambda i, y: "yes" if y else "no", "equal to click, value for value"),
    "paid": (lambda i, y: 0 if not y else i % 50 + 1, "constant where click is 0"),
    "score": (lambda i, y: y * 30 + i % 37, "alone it has an AUC of 0.9"),
    "place": (lambda i, y: f"p{i % 5 + 5 * y}" if i % 11 else "p0", "alone it has an AUC of 0.9"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_column_that_knows_the_answer_is_said(tmp_path: Path, name: str) -> None:
    make, text = LEAKS[name]
    rng = random.Random(1)
    clicks = [rng.randrange(2) for _ in range(400)]
    rows = [f"u{i % 9},{rng.randrange(300)},x{i},{make(i, y)},{y}" for i, y in enumerate(clicks)]
    (tmp_path / "x.csv").write_text("\n".join([f"user,item_id,row,{name},click", *rows]))
    found = draft_table(tmp_path / "x.csv")
    told = [line for line in found.text.splitlines() if "LEAKS THE ANSWER?" in line]
    assert [f"name: {name}" in line and text in line for line in told] == [True]
    assert any(f"column {name!r} may tell the answer: {text}" in remark for remark in found.remarks)
    exact = "exactly" in text or "equal" in text
    assert (features(yaml.safe_load(found.text))[name]["kind"] == "ignore") == exact
