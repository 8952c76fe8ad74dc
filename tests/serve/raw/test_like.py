"""Raw rows are read as `prepare table --like` prepares them: its SQL is the reference, value by value."""

from __future__ import annotations

import datetime
import math
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.file_checks import is_list
from dlrm_mtl.prepare.table.adapter import prepare_table
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.prepare.table.like import prepare_like
from dlrm_mtl.serve.raw.lookup import ValueIds
from dlrm_mtl.serve.raw.reader import RawReader
from dlrm_mtl.serve.raw.recipe import arrange_all, describe_raw
from dlrm_mtl.serve.rows import Where

ABSENT = ["", "NA", "-1"]
WORDS = st.sampled_from(
    [
        "a",
        "b",
        "A",
        "ü",
        "x,y",
        'q"t',
        "two\nlines",
        " b",
        "7",
        "7.0",
        "-7.0",
        "07",
        "7.00",
        "",
        "NA",
        "-",
        "a|b",
        "-1",
        "東京",
        "7.0\n",
    ]
)
SMALL = st.integers(-3, 9)
FRACTIONS = st.sampled_from(
    [1.0, 2.0, -1.0, -0.0, 0.5, 1e10, 0.1, 1e-5, 1e-4, 123456.75, 2.5e-310, math.inf, -math.inf, math.nan]
)
DAYS = st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31)) | st.just(datetime.date(2024, 1, 1))
MOMENTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)) | st.just(
    datetime.datetime(2024, 1, 1, 7, 0, 5, 120000)
)
UTC = datetime.timezone.utc

Kind = tuple[pa.DataType, st.SearchStrategy[Any]]
IDS: dict[str, Kind] = {
    "int8": (pa.int8(), SMALL),
    "int64": (pa.int64(), SMALL | st.sampled_from([2**53 + 1, -(2**62)])),
    "uint64": (pa.uint64(), st.integers(0, 9) | st.just(2**64 - 1)),
    "double": (pa.float64(), FRACTIONS),
    "float": (pa.float32(), FRACTIONS.map(np.float32)),
    "half": (pa.float16(), st.sampled_from([1.0, 0.1, 7.0]).map(np.float16)),
    "decimal": (
        pa.decimal128(8, 2),
        st.sampled_from([Decimal("1.00"), Decimal("1.50"), Decimal("-2.00"), Decimal("0.00"), Decimal("100.00")]),
    ),
    "whole decimal": (pa.decimal128(20, 0), st.sampled_from([Decimal("100"), Decimal("-7"), Decimal("0")])),
    "small decimal": (pa.decimal128(20, 12), st.sampled_from([Decimal("1e-12"), Decimal("7")])),
    "text": (pa.string(), WORDS),
    "large text": (pa.large_string(), WORDS),
    "numbers as text": (pa.string(), st.sampled_from(["1", "1.0", "2.0", "-3", "10", "7", "NA"])),
    "categories": (pa.dictionary(pa.int32(), pa.string()), WORDS),
    "bool": (pa.bool_(), st.booleans()),
    "date": (pa.date32(), DAYS),
    "seconds": (pa.timestamp("s"), MOMENTS.map(lambda time: time.replace(microsecond=0))),
    "milliseconds": (
        pa.timestamp("ms"),
        MOMENTS.map(lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000)),
    ),
    "microseconds": (pa.timestamp("us"), MOMENTS),
    "nanoseconds": (pa.timestamp("ns"), st.integers(-(2**62), 2**62)),
    "zoned": (pa.timestamp("us", "Asia/Tokyo"), MOMENTS.map(lambda time: time.replace(tzinfo=UTC))),
    "bytes": (pa.binary(), st.binary(max_size=4) | st.sampled_from([b"a", b"7", b"'\\\""])),
}
LISTS: dict[str, Kind] = {
    "ints": (pa.list_(pa.int32()), SMALL),
    "texts": (pa.list_(pa.string()), WORDS),
    "doubles": (pa.list_(pa.float64()), FRACTIONS),
    "floats": (pa.list_(pa.float32()), FRACTIONS.map(np.float32)),
    "large": (pa.large_list(pa.int64()), SMALL),
    "decimals": (pa.list_(pa.decimal128(8, 2)), st.sampled_from([Decimal("1.00"), Decimal("7.50")])),
    "bools": (pa.list_(pa.bool_()), st.booleans()),
}
BRACKETS = [
    "[1, 2]",
    "['a', 'b c', null]",
    '["a\\"b", None, 7.0]',
    "(7 8)",
    "{a,b}",
    "[]",
    "",
    "a",
    " [ ü , nan ] ",
    "['it\\'s']",
    "[\u00a0x\u00a0]",
    "'open",
    "[a\tb\x0bc]",
    "NA",
    "['null', '']",
]
NUMBERS: dict[str, Kind] = {
    "int32": (pa.int32(), st.integers(-1000, 1000)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "double": (pa.float64(), st.floats(-1e6, 1e6) | st.just(math.nan)),
    "float": (pa.float32(), st.floats(-1e6, 1e6, width=32) | st.just(math.nan)),
    "decimal": (pa.decimal128(10, 3), st.decimals(-999, 999, places=3)),
    "long decimal": (pa.decimal128(38, 12), st.decimals(-(10**20), 10**20, places=12)),
    "whole decimal": (pa.decimal128(38, 0), st.decimals(-(10**30), 10**30, places=0)),
    "text": (
        pa.string(),
        st.sampled_from(
            [
                "1",
                " 2.5 ",
                "-1e3",
                "",
                "NA",
                "0",
                "1_000",
                "+5",
                ".5",
                "5.",
                "\u00a07\t",
                "1.234,5",
                "1,234.5",
                "1.234.567",
                "12,5",
            ]
        )
        | st.floats(-1e9, 1e9).map(repr),
    ),
    "bool": (pa.bool_(), st.booleans()),
    "date": (pa.date32(), DAYS),
    "microseconds": (pa.timestamp("us"), MOMENTS),
    "nanoseconds": (pa.timestamp("ns"), st.integers(-(2**62), 2**62)),
    "zoned": (
        pa.timestamp("ms", "America/New_York"),
        MOMENTS.map(lambda time: time.replace(tzinfo=UTC, microsecond=0)),
    ),
}


ODD: dict[str, Kind] = {
    "texts": (
        pa.string(),
        st.sampled_from(["x", "1e400", "nan", "0x1", "１", "1 000", "-+1", "+-1", "1__0", "1e1_0", "1d", "1.5", "7"]),
    ),
    "large double": (pa.float64(), st.sampled_from([1.0, 2.0**53, 3.5e38, math.inf, -0.5])),
    "large float": (pa.float32(), st.sampled_from([1.0, 2.0**24, math.inf]).map(np.float32)),
    "dates": (pa.list_(pa.date32()), st.lists(DAYS, max_size=2)),
    "times": (pa.time32("s"), st.just(datetime.time(1, 2))),
    "structs": (pa.struct({"a": pa.int8()}), st.just({"a": 1})),
    "nested": (pa.list_(pa.list_(pa.int8())), st.just([[1]])),
    "ints": (pa.list_(pa.int8()), st.lists(SMALL, max_size=2)),
}
"""Later values, some of which are refused."""


@st.composite
def cases(draw: st.DrawFn) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Earlier rows, later rows whose columns may have other types, and a description."""
    tables: list[dict[str, pa.Array]] = [{}, {}]

    def column(name: str, kinds: dict[str, Kind]) -> None:
        kind = draw(st.sampled_from(sorted(kinds)))
        for table in tables:
            if draw(st.integers(0, 3)) == 0:
                kind = draw(st.sampled_from(sorted(kinds)))
            odd = table is tables[1] and draw(st.integers(0, 40)) == 0
            type_, values = ODD[draw(st.sampled_from(sorted(ODD)))] if odd else kinds[kind]
            if kinds is LISTS and not odd:
                values = st.lists(st.none() | values, max_size=4)
            size = 12 if table is tables[0] else 8
            drawn = draw(st.lists(st.none() | values if draw(st.booleans()) else values, min_size=size, max_size=size))
            table[name] = pa.array(drawn, type_, from_pandas=False)

    column("user", IDS)
    column("item", IDS)
    column("seen", LISTS)
    column(
        "tags",
        {
            "text": (pa.string(), st.lists(WORDS, max_size=3).map("|".join)),
            "int": IDS["int8"],
            "double": (pa.float64(), st.sampled_from([7.0, 0.5, math.nan])),
        },
    )
    column(
        "marks", {"text": (pa.string(), st.sampled_from(BRACKETS) | st.text(alphabet="[]'\",\\ a7\n\t{}", max_size=8))}
    )
    for name in ("price", "age", "when"):
        column(name, NUMBERS)
    tables[0]["click"] = pa.array([0, 1] * 6)
    source = {
        "nulls": ABSENT,
        "decimal": draw(st.sampled_from([".", ","])),
        "thousands": draw(st.sampled_from([None, None, " ", "'"])),
    }
    if source["decimal"] == "," and draw(st.booleans()):
        source["thousands"] = "."
    hashed = {"name": "hash", "size": 2**61, "seed": 3}
    clip = draw(st.sampled_from([None, [-10.0, 500.0], [0.1, 1234.5678901234567], [0.0, 1e-7]]))
    fill = draw(st.sampled_from([None, 3.0, 0.1, 1e-7, 0.12345678901234568]))
    features = [
        {"name": "user", "kind": "sparse", "vocabulary": hashed},
        {
            "name": "thing",
            "column": "item",
            "kind": "sparse",
            "vocabulary": {"name": "frequency", "min_count": draw(st.integers(1, 2))},
        },
        {
            "name": "seen",
            "kind": draw(st.sampled_from(["sequence", "sparse"])),
            "max_length": draw(st.sampled_from([None, 2])),
            "vocabulary_of": draw(st.sampled_from([None, "thing", "user"])),
        },
        {
            "name": "tags",
            "kind": draw(st.sampled_from(["sequence", "sparse"])),
            "separator": "|",
            "max_length": draw(st.sampled_from([None, 1])),
        },
        {"name": "marks", "kind": "sequence", "separator": draw(st.sampled_from([",", " "])), "brackets": True},
        {"name": "price", "kind": "dense", "transform": draw(st.sampled_from([None, "signed_log"]))},
        {
            "name": "age",
            "kind": "dense",
            "fill": fill,
            "clip": clip,
            "transform": draw(st.sampled_from([None, "log1p"])),
        },
        {"name": "when", "kind": "dense"},
    ]
    description = {
        "name": "t",
        "source": source,
        "features": [{key: value for key, value in one.items() if value is not None} for one in features],
        "labels": [{"name": "click"}],
        "split": {"name": "random", "shares": {"train": 1.0}},
    }
    return pa.table(tables[0]), pa.table(tables[1]), description


def plain(values: list[Any]) -> list[Any]:
    """Values to compare: a list without an entry is as good as null."""
    return [None if value == [] else value for value in values]


def check(case: tuple[pa.Table, pa.Table, dict[str, Any]]) -> str:
    """Read the later rows as raw rows, and compare them with what `prepare table --like` makes of them."""
    earlier, later, content = case
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pq.write_table(earlier, folder / "earlier.parquet")
        pq.write_table(later, folder / "later.parquet")
        try:
            description = validate(TableDescription, content, "description")
            prepare_table([folder / "earlier.parquet"], folder / "data", description, threads=1)
        except UserError:
            return "not prepared"
        dataset = open_dataset(folder / "data")
        raw, tensors = arrange_all(*describe_raw(dataset, dataset.spec, dataset.spec.features))
        vocabularies = {owner: ValueIds.load(tensors, owner, seed) for owner, seed in raw.seeds.items()}
        reader = RawReader(raw, vocabularies)
        features = reader.fields(dataset.spec.features)
        policies = {feature.name: "unknown" for feature in raw.features}
        refused = None
        try:
            prepare_like([folder / "later.parquet"], folder / "like", folder / "data", threads=1)
        except UserError as error:
            refused = str(error)
        if refused is not None and "needs a plain list without separator" in refused:
            return "refused"  # raw rows may have lists there
        if refused is not None:
            with pytest.raises(UserError) as own:
                pytest.fail(f"{refused}, but {reader.read(later, features, Where(), policies, policies)}")
            assert "\n" not in str(own.value)
            return "refused"
        wanted = pq.read_table(folder / "like/test")
        exact = later
        for name in later.column_names:
            inner = later[name].type.value_type if is_list(later[name].type) else later[name].type
            if inner in (pa.float16(), pa.float32(), pa.timestamp("ns")):  # Python has no such numbers
                exact = exact.drop_columns([name])
        described = {feature.name: feature for feature in raw.features}
        names = {feature.column: feature.name for feature in raw.features}
        some = reader.fields([dataset.spec.feature(names[name]) for name in exact.column_names])
        for columns, _, count in (
            reader.read(later, features, Where(), policies, policies),
            reader.read(exact.to_pylist(), some, Where(), policies, policies),
        ):
            assert count == later.num_rows
            for name, column in columns.items():
                found, expected = plain(column.to_pylist()), plain(wanted[name].to_pylist())
                assert found == expected, (name, later[described[name].column], found, expected)
        return "compared"


@given(cases())
@settings(
    max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
def test_rows_of_all_types(case: Any) -> None:
    check(case)


@pytest.mark.slow
@given(cases())
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_rows_of_a_thousand_tables(case: Any) -> None:
    check(case)
