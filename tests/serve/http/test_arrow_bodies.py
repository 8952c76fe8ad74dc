"""Arrow streams that a client could do harm with are refused before a value is read."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dlrm_mtl.serve.http.arrow_bodies import read_table, write_table
from dlrm_mtl.serve.http.limits import RefusedRequest
from tests.serve.http.servers import stream


def read(table: pa.Table, **options: Any) -> pa.Table:
    return read_table(stream(table, **options), {"a", "b"}, 100)


def test_only_named_columns_are_kept() -> None:
    table = pa.table({"a": [1, 2], "c": ["x", "y"], "b": [[1], None]}).replace_schema_metadata({"k": "v"})
    found = read(table)
    assert found.column_names == ["a", "b"]
    assert found.schema.metadata == {b"k": b"v"}
    assert found.to_pylist() == [{"a": 1, "b": [1]}, {"a": 2, "b": None}]


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("form", ["plain", "dictionary"])
def test_compressed_streams(codec: str, form: str) -> None:
    column = pa.array(np.zeros(50, np.int64))
    table = pa.table({"a": column if form == "plain" else column.dictionary_encode()})
    assert read(table).num_rows == 50
    with pytest.raises(RefusedRequest, match="body: its batches are compressed, which could grow without bound"):
        read(table, compression=codec)


def nulls(length: int) -> pa.Array:
    """Nulls that take no memory; pyarrow.nulls takes it."""
    return pa.Array.from_buffers(pa.null(), length, [None])


def null_lists(length: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, length], pa.int32()), nulls(length))


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (nulls(2**30), "has more than 100 rows"),
        (null_lists(2**30), "column 'a' claims 1,073,741,824 values in"),
        (pa.FixedSizeListArray.from_arrays(nulls(2**30), 2**29), "column 'a' claims 1,073,741,824 values in"),
        (
            pa.array(["x" * 9000] * 99).dictionary_encode(),
            "column 'a' is a dictionary of string; send its plain values",
        ),
        (pa.array([{"x": 1}]), "column 'a' has type struct<x: int64>; send numbers, or lists of them"),
        (pa.array([[[1]]]), "column 'a' has type list<item: list<item: int64>>"),
        (pa.array([b"1"]), "column 'a' has type binary"),
        (pa.RunEndEncodedArray.from_arrays(pa.array([90], pa.int32()), pa.array([1])), "column 'a' has type run_end"),
    ],
)
def test_columns_that_could_grow(column: pa.Array, sentence: str) -> None:
    with pytest.raises(RefusedRequest, match=sentence):
        read(pa.table({"a": column}))


def test_offsets_beyond_the_buffers() -> None:
    lists = pa.array([[1, 2], [3]])
    body = bytearray(stream(pa.table({"a": lists})))
    at = body.index(np.array([0, 2, 3], np.int32).tobytes())
    body[at + 8 : at + 12] = np.int32(2**30).tobytes()
    with pytest.raises(RefusedRequest, match="body: is no Arrow stream that can be read"):
        read_table(bytes(body), {"a"}, 100)


def test_damaged_streams_are_refused_or_read() -> None:
    table = pa.table({"a": pa.array([1, 2, None]), "b": pa.array([[1], None, [2, 3]])})
    good = stream(table)
    rng = random.Random(0)
    refused = 0
    for _ in range(3000):
        body = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        cut = rng.randrange(len(body)) if rng.random() < 0.3 else len(body)
        refused += status(bytes(body[:cut])) in (400, 413)
    assert refused > 1000


def status(body: bytes) -> int:
    try:
        read_table(body, {"a", "b"}, 100).to_pylist()
    except RefusedRequest as error:
        return error.status
    return 200


def test_what_is_written_is_read() -> None:
    scores = np.array([0.5, 0.25], np.float32)
    found = pa.ipc.open_stream(write_table({"click": scores}, {"version": "v"})).read_all()
    assert found.schema.metadata == {b"version": b"v"}
    np.testing.assert_array_equal(found["click"].to_numpy(), scores)
