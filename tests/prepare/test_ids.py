"""Ids by hash agree between Python, DuckDB and the definition; ids by frequency agree with a counter."""

from __future__ import annotations

import hashlib
from collections import Counter

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.core.sql import identifier
from dlrm_mtl.prepare.common.ids import frequency_vocabulary, hash_ids, hash_sql

ODD = [
    "",
    " ",
    "0",
    "-1",
    "é",
    "e\u0301",
    "日本語",
    "🎬",
    "'",
    '"',
    "a\nb",
    "\t",
    ":",
    "0:user:",
    "x" * 10_000,
    str(2**70),
]
texts = st.text(st.characters(exclude_categories=["Cs"]))


def in_duckdb(values: pa.Array, size: int, feature: str, seed: int) -> list[int]:
    with duckdb.connect() as connection:
        connection.register("given", pa.table({"value": values}))
        query = f"SELECT {hash_sql('value', size, feature=feature, seed=seed)} FROM given"
        return [row[0] for row in connection.execute(query).fetchall()]


def by_definition(value: str | None, size: int, feature: str, seed: int) -> int:
    if value is None:
        return 0
    digits = hashlib.md5(f"{seed}:{feature}:{value}".encode()).hexdigest()[:15]
    return 1 + int(digits, 16) % (size - 1)


def test_known_ids() -> None:
    """Fixed for good: data sets and served models depend on them."""
    values = ["ann", "bob", "", None, "日本語", "-7"]
    assert hash_ids(values, 1_000_000, feature="user").tolist() == [
        by_definition(v, 1_000_000, "user", 0) for v in values
    ]
    assert hash_ids(["ann"], 1_000_000, feature="user").tolist() == [268148]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.none() | texts, max_size=30),
    size=st.integers(2, 2**40),
    feature=texts.filter(lambda name: "\0" not in name),
    seed=st.integers(-(2**40), 2**40),
)
def test_python_and_sql_agree(values: list[str | None], size: int, feature: str, seed: int) -> None:
    values = [*values, *ODD, None]
    python = hash_ids(values, size, feature=feature, seed=seed)
    assert python.tolist() == in_duckdb(pa.array(values, pa.string()), size, feature, seed)
    assert python.tolist() == [by_definition(value, size, feature, seed) for value in values]
    assert python.min() == 0
    assert python.max() < size


@pytest.mark.parametrize("type_", [pa.int64(), pa.int8(), pa.uint64()])
def test_integers_count_as_their_digits(type_: pa.DataType) -> None:
    top = {pa.int64(): 2**63 - 1, pa.int8(): 127, pa.uint64(): 2**64 - 1}[type_]
    low = 0 if type_ == pa.uint64() else -top - 1
    numbers = pa.array([0, 1, top, low, None], type_)
    wanted = hash_ids([None if number is None else str(number) for number in numbers.to_pylist()], 1000, feature="n")
    assert hash_ids(numbers, 1000, feature="n").tolist() == wanted.tolist()
    assert in_duckdb(numbers, 1000, "n", 0) == wanted.tolist()
    assert hash_ids(numbers.dictionary_encode(), 1000, feature="n").tolist() == wanted.tolist()


def test_what_has_no_single_text_is_refused() -> None:
    for values in ([1.5], [True], pa.array([1.5]), pa.array([True])):
        with pytest.raises(TypeError, match="cannot be hashed"):
            hash_ids(values, 10, feature="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size 1"):
        hash_ids(["a"], 1, feature="x")


def test_ids_spread_evenly_and_differently_per_feature_and_seed() -> None:
    values = [str(number) for number in range(50_000)]
    size = 101
    one = hash_ids(values, size, feature="user")
    counts = np.bincount(one, minlength=size)[1:]
    assert ((counts - 500) ** 2 / 500).sum() < 170  # chi square with 99 degrees of freedom: 1e-5 lies beyond
    for other in (hash_ids(values, size, feature="item"), hash_ids(values, size, feature="user", seed=1)):
        assert abs((one == other).mean() - 1 / 100) < 0.003


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.none() | st.sampled_from("abcdef") | texts, max_size=60),
    min_count=st.integers(1, 3),
    max_size=st.none() | st.integers(2, 6),
)
def test_frequency(values: list[str | None], min_count: int, max_size: int | None) -> None:
    counts = Counter(value for value in values if value is not None)
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0].encode()))
    wanted = [entry for entry in ranked if entry[1] >= min_count][: None if max_size is None else max_size - 1]
    with duckdb.connect() as connection:
        connection.register("given", pa.table({"value": pa.array(values, pa.string())}))
        table = identifier('odd "name"')
        size = frequency_vocabulary(
            connection, table, "SELECT value FROM given", min_count=min_count, max_size=max_size
        )
        rows = connection.execute(f"SELECT value, count, id FROM {table} ORDER BY id").fetchall()
    assert size == len(wanted) + 1
    assert rows == [(value, count, position) for position, (value, count) in enumerate(wanted, start=1)]
