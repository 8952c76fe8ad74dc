"""Small tables and malformed ones, for the tests of ``prepare table``."""

from __future__ import annotations

import gzip
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.prepare.table.adapter import prepare_table
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.prepare.table.infer import draft

DESCRIPTION: dict[str, Any] = {
    "name": "shop",
    "features": [
        {"name": "user", "kind": "sparse", "vocabulary": {"name": "hash", "size": 50}},
        {"name": "product", "kind": "sparse", "vocabulary": {"name": "frequency", "min_count": 2}},
        {"name": "tags", "kind": "sparse", "separator": "|", "max_length": 3},
        {"name": "seen", "kind": "sequence", "separator": " ", "vocabulary_of": "product", "max_length": 2},
        {"name": "price", "kind": "dense", "transform": "signed_log", "clip": [-5, 500]},
        {"name": "age", "kind": "dense", "fill": 30, "standardise": False},
    ],
    "labels": [
        {"name": "click"},
        {"name": "rich", "where": 'income == " 50000+." or price > 90'},
        {"name": "seconds", "kind": "real"},
    ],
    "split": {"name": "random", "shares": {"train": 0.6, "test": 0.4}},
}
DESCRIPTION["features"][4]["column"] = "cost"


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a table that fits :data:`DESCRIPTION`."""
    rng = random.Random(seed)
    return [
        {
            "user": f"u{rng.randrange(9)}",
            "product": rng.choice(["lamp", "rug, large", 'a "pen"', "Müsli", "椅子", ""]),
            "tags": "|".join(rng.sample(["home", "light", "office", "sale", "new"], rng.randrange(5))),
            "seen": " ".join(rng.choices(["lamp", "pen", "mug"], k=rng.randrange(4))),
            "cost": rng.choice(["", "19.9", "-3", "2e2", "0"]),
            "age": rng.choice(["", str(rng.randrange(90))]),
            "click": rng.choice(["0", "1", ""]),
            "income": rng.choice([" 50000+.", "- 50000."]),
            "price": rng.choice(["", "95", "10"]),
            "seconds": rng.choice(["", "1.5", "7"]),
            "day": f"2024-03-{1 + position * 28 // count:02d}",
        }
        for position, row in enumerate(range(count))
        if row >= 0
    ]


def write_csv(path: Path, entries: list[dict[str, Any]], encoding: str = "utf-8", separator: str = ",") -> Path:
    """Write rows as RFC 4180 says."""

    def field(value: Any) -> str:
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in (separator, '"', "\n")) else text

    lines = [separator.join(entries[0]), *(separator.join(field(value) for value in row.values()) for row in entries)]
    content = ("\n".join(lines) + "\n").encode(encoding)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def description(**changes: Any) -> TableDescription:
    """:data:`DESCRIPTION` with top-level keys replaced."""
    return validate(
        TableDescription,
        yaml.safe_load(yaml.safe_dump({**DESCRIPTION, **changes}, sort_keys=False)),
        "description.yaml",
    )


def read_all(folder: Path) -> dict[str, int]:
    """Read every row of every split with the reader; rows by split."""
    dataset = open_dataset(folder)
    config = DataConfig(path=str(folder), batch_size=64, evaluation_batch_size=64, lanes=1)
    labels = [label.name for label in dataset.spec.labels]
    found = {}
    for name in dataset.spec.splits:
        loader = BatchLoader(dataset.split(name), config, labels)
        assert sum(1 for _ in loader.epoch(0)) > 0
        found[name] = loader.rows
    return found


NASTY = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"|",
    b"'",
    b"\\",
    b"nan",
    b"-inf",
]
NASTY += [
    b"1e999",
    b"9" * 400,
    b"0x1f",
    b"1_000",
    b"true",
    b"\xe2\x80\xa8",
    b'""',
    b'",\n"',
    b"    ",
    b"a" * 5000,
    b"-1",
    b"2",
]


def spoil(content: bytes, rng: random.Random) -> bytes:
    """A file with one to three things wrong; its first line mostly stays."""
    header, end, body = content.partition(b"\n")
    return header + end + _spoil(body, rng) if rng.random() < 0.85 else _spoil(content, rng)


def _spoil(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 3])):
        lines = content.split(b"\n")
        place, other = (rng.randrange(len(content) + 1) for _ in range(2))
        line = rng.randrange(len(lines))
        kind = rng.randrange(9)
        if kind == 0:
            content = content[:place] + rng.choice(NASTY) + content[place:]
        elif kind == 1:
            content = content[: min(place, other)] + content[max(place, other) :]
        elif kind == 2:
            content = content[:place]
        elif kind == 3:
            content = content[:place] + rng.randbytes(rng.randrange(1, 20)) + content[place:]
        elif kind == 4:  # one field becomes another thing
            fields = lines[line].split(b",")
            fields[rng.randrange(len(fields))] = rng.choice(NASTY)
            content = b"\n".join([*lines[:line], b",".join(fields), *lines[line + 1 :]])
        elif kind == 5:
            content = b"\n".join([*lines[:line], *lines[line + 1 :]])
        elif kind == 6:
            content = b"\n".join([*lines[:line], lines[line] + b"," * rng.randrange(1, 3), *lines[line + 1 :]])
        elif kind == 7:
            content = content.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n"]), rng.choice([-1, 3]))
        else:
            content = content.replace(
                rng.choice([b",", b'"', b"0", b"click", b"1"]), rng.choice(NASTY), rng.randrange(1, 9)
            )
    return content


def change_description(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A description with one thing changed, for better or worse."""
    content = yaml.safe_load(yaml.safe_dump(content))
    feature, label = rng.choice(content["features"]), rng.choice(content["labels"])
    columns = ["user", "product", "tags", "cost", "age", "click", "income", "day", "no", "USER"]
    match rng.randrange(8):
        case 0:
            feature["column"] = rng.choice(columns)
        case 1:
            kind = rng.choice(["sparse", "sequence", "dense", "ignore"])
            content["features"] = [*content["features"], {"name": "extra", "kind": kind, "column": rng.choice(columns)}]
        case 2:
            label.pop("kind", None)
            label["where"] = rng.choice(
                [
                    "age > 3",
                    'age == "3"',
                    "day in (1, 2)",
                    "cost is null",
                    "a ==",
                    "not user != 'u1'",
                    "tags < 1e400",
                    "`no`=1",
                ]
            )
        case 3:
            label["column"] = rng.choice(columns)
        case 4:
            content["source"] = {
                **content.get("source", {}),
                "separator": rng.choice([",", ";", "\t", "::", "|", '"', "a"]),
                "quote": rng.choice(['"', "'", None]),
                "encoding": rng.choice(["utf-8", "cp1252", "utf-16", "gbk", "x"]),
            }
        case 5:
            content["split"] = rng.choice(
                [
                    {"name": "time", "column": rng.choice(columns), "shares": {"train": 0.5, "test": 0.5}},
                    {
                        "name": "time",
                        "column": rng.choice(columns),
                        "cuts": {"test": rng.choice(["2024-03-10", 7, "x"])},
                    },
                    {"name": "user", "column": rng.choice(columns), "shares": {"train": 0.5, "test": 0.5}},
                    {"name": "files", "files": {"train": ["*"], "test": ["b*"]}},
                    {"name": "files", "files": {"train": ["a*"], "test": ["b*"]}},
                ]
            )
        case 6:
            header = (
                {"header": False, "columns": list(rows(1)[0])}
                if rng.random() < 0.7
                else {"header": True, "columns": ["a"]}
            )
            content["source"] = {**content.get("source", {}), **header}
        case 7:
            content["source"] = {**content.get("source", {}), "nulls": rng.choice([[], ["", "0"], ["1", "'"]])}
    return content


TYPES = [
    pa.string(),
    pa.int8(),
    pa.uint64(),
    pa.float32(),
    pa.bool_(),
    pa.date32(),
    pa.timestamp("us"),
    pa.time64("us"),
]
TYPES += [pa.list_(pa.string()), pa.list_(pa.int32()), pa.list_(pa.list_(pa.int8())), pa.binary(), pa.decimal128(9, 2)]
TYPES += [pa.struct([("a", pa.int8())]), pa.map_(pa.string(), pa.int8()), pa.null(), pa.duration("s"), pa.float64()]


def odd_parquet(path: Path, rng: random.Random, count: int) -> None:
    """A Parquet file in which some columns have unexpected types, and which may be damaged."""
    table = pa.Table.from_pylist(
        rows(count, rng.randrange(99)), pa.schema([(name, pa.string()) for name in rows(1)[0]])
    )
    for _ in range(rng.choice([0, 1, 1, 2])):
        position, type_ = rng.randrange(table.num_columns), rng.choice(TYPES)
        table = table.set_column(position, table.column_names[position], odd_values(type_, count, rng))
    pq.write_table(table, path)
    if rng.random() < 0.3:
        path.write_bytes(spoil(path.read_bytes(), rng))


def odd_values(type_: pa.DataType, count: int, rng: random.Random) -> pa.Array:
    """Values of a type, with nulls."""
    numbers = [None if rng.random() < 0.1 else rng.randrange(3) for _ in range(count)]
    if pa.types.is_floating(type_):
        odd = [float("nan"), float("inf"), 1e38, 0.5, -1.0, 1.0]
        return pa.array([None if number is None else float(rng.choice(odd)) for number in numbers], type_)
    if pa.types.is_null(type_):
        return pa.nulls(count)
    if pa.types.is_struct(type_):
        return pa.array([None if number is None else {"a": number} for number in numbers], type_)
    if pa.types.is_map(type_):
        return pa.array([None if number is None else [("a", number)] for number in numbers], type_)
    if pa.types.is_list(type_):
        inner = odd_values(type_.value_type, count, rng).to_pylist()
        return pa.array([None if number is None else inner[:number] for number in numbers], type_)
    if pa.types.is_binary(type_) or pa.types.is_string(type_) or pa.types.is_decimal(type_):
        return pa.array([None if number is None else str(number) for number in numbers]).cast(type_)
    return pa.array(numbers, pa.int32() if pa.types.is_date(type_) else pa.int64()).cast(type_)


def drafted(raw: Path) -> None:
    """Draft a description: it must be one, or the files must be refused by a :class:`UserError`."""
    try:
        content = yaml.safe_load(draft(raw))
    except UserError:
        return
    if "labels" in content:
        validate(TableDescription, content, "draft")


def attempt(folder: Path, seed: int) -> str:
    """Prepare one malformed table. It must be read, or refused by a :class:`UserError`; returns the sentence, or nothing.

    Nothing may be left behind but what was asked for.
    """
    rng = random.Random(seed)
    raw = folder / "raw"
    raw.mkdir(parents=True)
    parquet = rng.random() < 0.2
    for name in ("a", "b")[: rng.choice([1, 1, 2])]:
        count = rng.choice([0, 5, 40, 40, 40])
        if parquet:
            odd_parquet(raw / f"{name}.parquet", rng, count)
            continue
        content = write_csv(raw / f"{name}.csv", rows(max(count, 1), rng.randrange(99))).read_bytes()
        content = spoil(content if count else content.split(b"\n")[0], rng)
        if rng.random() < 0.1:
            (raw / f"{name}.csv").unlink()
            packed = gzip.compress(content, mtime=0)
            (raw / f"{name}.csv.gz").write_bytes(packed if rng.random() < 0.5 else spoil(packed, rng))
        else:
            (raw / f"{name}.csv").write_bytes(content)
    if rng.random() < 0.25:
        drafted(raw)
    changed = {**DESCRIPTION, "source": {"malformed": rng.choice(["error", "skip", "skip"])}}
    if rng.random() < 0.7:
        changed["source"]["encoding"] = "latin-1"
    for _ in range(rng.choice([0, 0, 0, 0, 1])):
        changed = change_description(changed, rng)
    sentence = ""
    try:
        prepare_table([raw], folder / "out", validate(TableDescription, changed, "description.yaml"), threads=1)
        read_all(folder / "out")
    except UserError as error:
        sentence = str(error)
        assert sentence.strip(), seed
        assert all(line.endswith(".") for line in sentence.split("\n")), (seed, sentence)
        assert not (folder / "out").exists(), (seed, sentence)
    assert {path.name for path in folder.iterdir()} <= {"raw", "out"}, seed
    shutil.rmtree(folder)
    return sentence
