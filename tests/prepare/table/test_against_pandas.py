"""``prepare table`` on invented tables of all types, end to end, against a plain pandas version of the same description."""

from __future__ import annotations

import datetime
import hashlib
import math
import re
import tempfile
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.prepare.table.adapter import prepare_table
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.prepare.table.like import prepare_like

UTC = datetime.timezone.utc
ABSENT = ["", "NA"]
"""Texts that stand for a missing value."""
WORDS = st.sampled_from(["a", "b", "A", "ü", "x,y", 'q"t', "two\nlines", " b", "7", "7.0", "07", "", "NA", "-", "a|b"])
SMALL = st.integers(-3, 9)

# By type: the Arrow type, and values. A whole double is the id of the integer; texts stand for themselves.
IDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int8": (pa.int8(), SMALL),
    "int64": (pa.int64(), st.one_of(SMALL, st.sampled_from([2**53 + 1, 2**53 + 2, -(2**62)]))),
    "uint64": (pa.uint64(), st.one_of(st.integers(0, 9), st.sampled_from([2**64 - 1, 2**64 - 2]))),
    "double": (pa.float64(), st.sampled_from([1.0, 2.0, -1.0, 0.5, 1e10, math.nan])),
    "float": (pa.float32(), st.sampled_from([1.0, 2.0, 0.5, math.nan])),
    "decimal": (pa.decimal128(8, 2), st.sampled_from([Decimal("1.00"), Decimal("1.50"), Decimal("-2.00")])),
    "text": (pa.string(), WORDS),
    "numbers as text": (pa.string(), st.sampled_from(["1", "1.0", "2.0", "-3", "10", "NA"])),
    "categories": (pa.dictionary(pa.int32(), pa.string()), WORDS),
    "bool": (pa.bool_(), st.booleans()),
    "date": (pa.date32(), st.dates(datetime.date(2024, 1, 1), datetime.date(2024, 1, 4))),
}
LISTS = {
    "ints": (pa.list_(pa.int32()), SMALL),
    "texts": (pa.list_(pa.string()), WORDS),
    "doubles": (pa.list_(pa.float64()), st.sampled_from([1.0, 2.0, 0.5, math.nan])),
    "large": (pa.large_list(pa.int64()), SMALL),
}
NUMBERS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int32": (pa.int32(), st.integers(-1000, 1000)),
    "double": (pa.float64(), st.one_of(st.floats(-1e6, 1e6), st.just(math.nan))),
    "float": (pa.float32(), st.one_of(st.floats(-1e6, 1e6, width=32), st.just(math.nan))),
    "decimal": (pa.decimal128(10, 3), st.decimals(-999, 999, places=3)),
    "text": (pa.string(), st.sampled_from(["1", " 2.5 ", "-1e3", "", "NA", "0"])),
    "bool": (pa.bool_(), st.booleans()),
}
LABELS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int8": (pa.int8(), st.integers(0, 1)),
    "bool": (pa.bool_(), st.booleans()),
    "double": (pa.float64(), st.sampled_from([0.0, 1.0, math.nan])),
    "text": (pa.string(), st.sampled_from(["0", "1", "1.0", "true", "NA"])),
}
ZONES = [None, "UTC", "Asia/Tokyo", "America/New_York"]
MOMENTS = st.datetimes(datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 9)).map(
    lambda moment: moment.replace(microsecond=0)
)
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def chance(*parts: object) -> float:
    """The number in [0, 1) that a text is hashed to, see docs/prepare.md."""
    return int(hashlib.md5(":".join(map(str, parts)).encode()).hexdigest()[:15], 16) / 2**60


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, pa.DataType], dict[str, Any], str | None]:
    """Rows, the types of their columns, a description, and the time zone of the column ``when``."""
    size = draw(st.integers(12, 40))
    types: dict[str, pa.DataType] = {}
    columns: dict[str, st.SearchStrategy[Any]] = {}

    def column(name: str, kinds: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]], nulls: bool = True) -> str:
        kind = draw(st.sampled_from(sorted(kinds)))
        types[name], values = kinds[kind]
        columns[name] = st.one_of(st.none(), values) if nulls and draw(st.booleans()) else values
        return kind

    column("user", IDS)
    column("item", IDS)
    kind = draw(st.sampled_from(sorted(LISTS)))
    types["seen"], entry = LISTS[kind]
    columns["seen"] = st.one_of(st.none(), st.lists(st.one_of(st.none(), entry), max_size=4))
    types["tags"], columns["tags"] = pa.string(), st.lists(st.sampled_from("abc"), max_size=3).map("|".join)
    column("price", NUMBERS)
    column("age", NUMBERS)
    column("click", LABELS)
    types["grade"], columns["grade"] = pa.int16(), st.one_of(st.none(), st.integers(1, 5))
    zone = draw(st.sampled_from(ZONES))
    if draw(st.booleans()):
        types["when"] = pa.timestamp(draw(st.sampled_from(["s", "ms", "us", "ns"])), zone)
        columns["when"] = MOMENTS
    else:
        types["when"], columns["when"], zone = pa.int64(), st.integers(0, 50), None
    rows = draw(st.lists(st.fixed_dictionaries(columns), min_size=size, max_size=size))
    own = {"name": "frequency", "min_count": draw(st.integers(1, 2))}
    features = [
        {"name": "user", "kind": "sparse", "vocabulary": {"name": "hash", "size": 2**61, "seed": 3}},
        {"name": "item", "kind": "sparse", "vocabulary": own},
        {"name": "seen", "kind": "sequence", "max_length": draw(st.sampled_from([None, 2]))},
        {"name": "tags", "kind": "sparse", "separator": "|", "max_length": draw(st.sampled_from([None, 1]))},
        {"name": "price", "kind": "dense", "transform": draw(st.sampled_from([None, "signed_log"]))},
        {"name": "age", "kind": "dense", "fill": draw(st.sampled_from([None, 3.0])), "clip": [-10.0, 500.0]},
    ]
    where = draw(st.sampled_from(["grade >= 4", "grade in (1, 2) or grade is null", "not grade == 3"]))
    split = draw(
        st.sampled_from(
            [
                {"name": "random", "shares": SHARES, "seed": 5},
                {"name": "user", "column": "user", "shares": SHARES, "seed": 5},
                {"name": "time", "column": "when", "shares": SHARES},
            ]
        )
    )
    labels = [{"name": "click"}, {"name": "liked", "where": where}]
    content = {
        "name": "t",
        "source": {"nulls": ABSENT},
        "features": [{key: value for key, value in one.items() if value is not None} for one in features],
        "labels": labels,
        "split": split,
    }
    return rows, types, content, zone


def missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and value in ABSENT)
    )


def ids_of(values: pd.Series, known: pd.Series | None = None) -> pd.Series:
    """The texts by which the values of a column are compared; missing ones are None.

    Whether texts are numbers is what ``known`` says, by default ``values`` themselves.
    """
    texts = [
        value
        for value in (values if known is None else known).explode()
        if isinstance(value, str) and not missing(value)
    ]
    whole = all(re.fullmatch(r"-?\d+(\.0)?", value) for value in texts)

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(entry) for entry in value if not missing(entry)]
        if missing(value):
            return None
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (float, Decimal)):
            return str(int(value)) if value == int(value) else format(Decimal(str(value)).normalize(), "f")
        if isinstance(value, str) and whole:
            return value.removesuffix(".0")
        return str(value)

    return values.map(one).astype(object).where(lambda column: column.notna(), None)


def real(value: Any) -> float | None:
    return None if missing(value) else float(value)


def split_of(frame: pd.DataFrame, split: dict[str, Any]) -> pd.Series:
    """The split of every row."""
    if split["name"] == "files":  # the second half is made like the first
        return pd.Series(["train"] * (len(frame) // 2) + ["test"] * (len(frame) - len(frame) // 2))
    bounds = [SHARES["train"], SHARES["train"] + SHARES["validation"]]
    if split["name"] == "time":
        times = frame["when"].sort_values(ignore_index=True)
        cuts = [times[math.floor(bound * len(times) + 0.5)] for bound in bounds]
        return frame["when"].map(lambda time: list(SHARES)[sum(time >= cut for cut in cuts)])
    keys = (
        pd.Series(range(len(frame)))
        if split["name"] == "random"
        else ids_of(frame["user"]).map(lambda text: text or "")
    )
    return keys.map(lambda key: list(SHARES)[sum(chance(5, "split", key) >= bound for bound in bounds)])


def compare(frame: pd.DataFrame, content: dict[str, Any], folder: Path) -> None:
    """Every row of every split, in order: numbers and labels alike, ids alike up to their order."""
    splits = split_of(frame, content["split"])
    names = [name for name in SHARES if (splits == name).any()]
    training = splits == "train"
    known = training if content["split"]["name"] == "files" else splits.notna()
    features = {feature["name"]: feature for feature in content["features"]}
    got = pd.concat(
        {name: pq.read_table(folder / name).to_pandas().reset_index(drop=True) for name in names}, ignore_index=False
    )
    order = [position for name in names for position in np.flatnonzero(splits == name)]
    assert len(got) == len(frame)
    assert [name for name, _ in got.index] == [splits[position] for position in order]
    got = got.set_index(pd.Index(order)).sort_index()

    # user: hashed, so that equal values share an id and others do not
    texts = ids_of(frame["user"], frame["user"][known])
    expected = [
        0 if text is None else 1 + int(hashlib.md5(f"3:user:{text}".encode()).hexdigest()[:15], 16) % (2**61 - 1)
        for text in texts
    ]
    assert got["user"].tolist() == expected, texts.tolist()

    # ids by frequency: one to one with the values of the training rows that are frequent enough
    lists = {
        "item": ids_of(frame["item"], frame["item"][known]).map(lambda text: [] if text is None else [text]),
        "seen": ids_of(frame["seen"], frame["seen"][known]),
        "tags": frame["tags"].map(
            lambda text: [part for part in text.split("|") if part] if not missing(text) else None
        ),
    }
    for name, wanted in lists.items():
        limit = features[name].get("max_length")
        if limit:
            wanted = wanted.map(
                lambda found, name=name, limit=limit: found and (found[-limit:] if name == "seen" else found[:limit])
            )
        counts = Counter(text for found in wanted[training] for text in found or [])
        least = features[name].get("vocabulary", {}).get("min_count", 1)
        known = {text for text, count in counts.items() if count >= least}
        ids: dict[str, int] = {}
        for found, given_ids in zip(wanted, got[name], strict=True):
            if name == "item":
                given_ids = [given_ids] if found else []
                assert found or got[name].notna().all()
            flat = [] if given_ids is None else list(given_ids)
            assert len(flat) == len(found or []), (name, found, flat)
            for text, number in zip(found or [], flat, strict=True):
                assert ids.setdefault(text, number) == number, (name, text)
                assert (number == 0) == (text not in known), (name, text)
        numbers = sorted(ids[text] for text in known)
        assert numbers == list(range(1, len(known) + 1)), name
        by_count = [counts[text] for text in sorted(known, key=lambda text: ids[text])]
        assert by_count == sorted(by_count, reverse=True)

    price = [real(value) for value in frame["price"]]
    if features["price"].get("transform"):
        price = [None if value is None else math.copysign(math.log1p(abs(value)), value) for value in price]
    age = [real(value) if not missing(value) else features["age"].get("fill") for value in frame["age"]]
    age = [None if value is None else min(max(value, -10.0), 500.0) for value in age]
    for name, column in (("price", price), ("age", age)):
        np.testing.assert_allclose(
            got[name].to_numpy(dtype=float),
            np.array([math.nan if v is None else v for v in column]),
            rtol=1e-12,
            atol=1e-15,
        )

    truth = {"true": 1.0}
    click = [None if missing(value) else truth.get(value) or float(value) for value in frame["click"]]
    conditions = {
        "grade >= 4": lambda grade: None if missing(grade) else float(grade >= 4),
        "grade in (1, 2) or grade is null": lambda grade: 1.0 if missing(grade) else float(grade in (1, 2)),
        "not grade == 3": lambda grade: None if missing(grade) else float(grade != 3),
    }
    liked = [conditions[content["labels"][1]["where"]](grade) for grade in frame["grade"]]
    for name, column in (("click", click), ("liked", liked)):
        np.testing.assert_array_equal(
            got[name].to_numpy(dtype=float), np.array([math.nan if v is None else v for v in column])
        )


OTHER_TYPES = [pa.int16(), pa.int64(), pa.uint32(), pa.float64(), pa.decimal128(24, 4), pa.null()]
"""What another writer may take for the same numbers, in this order as far as its values fit."""


def in_files(table: pa.Table, folder: Path, pieces: int) -> None:
    """Write the table to ``pieces`` files; all but the first hold numbers in other types than it, where they fit."""
    folder.mkdir()
    size = -(-table.num_rows // pieces)
    for number in range(pieces):
        piece = table.slice(number * size, size)
        for position, field in enumerate(piece.schema if number else []):
            if field.name in ("user", "item", "price", "age", "grade", "seen"):
                exact = not any(
                    isinstance(value, int) and abs(value) >= 2**53 for value in table[field.name].to_pylist()
                )
                changed = otherwise(piece.column(position), number + position, exact)
                piece = piece.set_column(position, field.name, changed)
        pq.write_table(piece, folder / f"part-{number}.parquet", row_group_size=7)


def otherwise(column: pa.ChunkedArray, seed: int, exact: bool) -> pa.ChunkedArray:
    """The same numbers, or lists of them, in another type, a double if those are ``exact``; others as they are."""
    listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    inner = column.type.value_type if listed else column.type
    if not (pa.types.is_integer(inner) or pa.types.is_float64(inner) or pa.types.is_decimal(inner)):
        return column
    for number in range(len(OTHER_TYPES)):
        type_ = OTHER_TYPES[(seed + number) % len(OTHER_TYPES)]
        if (pa.types.is_null(type_) and column.null_count < len(column)) or (type_ == pa.float64() and not exact):
            continue
        try:
            changed = column.cast(pa.list_(type_) if listed else type_)
            same = pa.types.is_null(type_) or changed.cast(column.type).equals(column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        if same:
            return changed
    return column


Case = tuple[list[dict[str, Any]], dict[str, pa.DataType], dict[str, Any], str | None]


def as_table(case: Case) -> tuple[pa.Table, pd.DataFrame]:
    """The rows of a case, for Parquet and for the reference."""
    rows, types, _, zone = case
    moments = [row["when"] for row in rows]
    if zone is not None:  # as another writer would: the same moment, told in its zone
        moments = [moment.replace(tzinfo=UTC) for moment in moments]
    columns = {
        name: pa.array([row[name] for row in rows] if name != "when" else moments, types[name], from_pandas=False)
        for name in types
    }
    frame = pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=object) for name in types})
    frame["when"] = moments
    return pa.table(columns), frame


def check(case: Case, pieces: int) -> None:
    content = case[2]
    table, frame = as_table(case)
    splits = split_of(frame, content["split"])
    with tempfile.TemporaryDirectory() as temporary:
        folder, output = Path(temporary) / "in", Path(temporary) / "out"
        in_files(table, folder, pieces)
        description = validate(TableDescription, content, "description")
        if set(splits) != set(SHARES):
            with pytest.raises(UserError, match="gets none of the"):
                prepare_table([folder], output, description)
            assert not output.exists()
            return
        training = splits == "train"
        assume(frame["click"][training].map(lambda value: not missing(value)).any())
        prepare_table([folder], output, description, threads=1)
        compare(frame, content, output)


def check_like(case: Case) -> None:
    """The first half of the rows is prepared, and the second made like it."""
    content = {**case[2], "split": {"name": "files", "files": {"train": ["part-0.parquet"]}}}
    columns, frame = as_table((case[0], case[1], content, case[3]))
    half = len(frame) // 2
    assume(frame["click"][:half].map(lambda value: not missing(value)).any())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, rows in (("part-0", columns.slice(0, half)), ("later", columns.slice(half))):
            pq.write_table(rows, folder / f"{name}.parquet")
        prepare_table([folder / "part-0.parquet"], folder / "out", validate(TableDescription, content, "description"))
        prepare_like([folder / "later.parquet"], folder / "like", folder / "out")
        (folder / "like/test").rename(folder / "out/test")
        compare(frame, content, folder / "out")


@given(tables(), st.integers(1, 3))
@settings(
    max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
def test_parquet_of_all_types(case: Any, pieces: int) -> None:
    check(case, pieces)


@given(tables())
@settings(
    max_examples=10, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
def test_later_rows_of_all_types(case: Any) -> None:
    check_like(case)


@pytest.mark.slow
@given(tables())
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_later_rows_of_five_hundred_tables(case: Any) -> None:
    check_like(case)


@pytest.mark.slow
@given(tables(), st.integers(1, 3))
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_two_thousand_tables(case: Any, pieces: int) -> None:
    check(case, pieces)
