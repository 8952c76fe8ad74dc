"""Golden raw rows: raw values that are found back from ids and numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.data.spec import FeatureSpec
from dlrm_mtl.data.vocabularies import Values
from dlrm_mtl.serve.raw.description import RawFeature, RawRows
from dlrm_mtl.serve.raw.golden import raw_rows_of
from dlrm_mtl.serve.raw.lookup import ValueIds, arrange

CITIES = Values("", pa.array(["Ur", "unknown", "Köln"]), np.array([1, 2, 3]))


def inverted(stored: list[Any], **keys: Any) -> list[Any] | None:
    """Raw values of a column of ids, as they stand in golden rows; None if there are none."""
    tensors, seed = arrange(CITIES.values, CITIES.ids, "city")
    lookups = {"city": ValueIds.load(tensors, "city", seed)}
    feature = RawFeature(name="city", column="town", kind="sparse", values="vocabulary", owner="city", **keys)
    raw, spec = RawRows(nulls=["NA"], features=[feature]), FeatureSpec(name="city", kind="sparse", vocabulary_size=4)
    rows, lacking = raw_rows_of(raw, [spec], {"city": CITIES}, lookups, [{"city": value} for value in stored])
    assert lacking == ([] if rows else ["city"])
    return [row["town"] for row in rows] if rows else None


@pytest.mark.parametrize(
    ("stored", "keys", "wanted"),
    [
        ([1, 3, 0], {}, ["Ur", "Köln", None]),
        ([1, None, 0], {"null": "null"}, ["Ur", None, "unknown_"]),
        ([[1, 0], [], None], {"listed": True}, [["Ur", "unknown_"], [], None]),
        ([[1, 0], [3]], {"listed": True, "separator": "|"}, ["Ur|unknown_", "Köln"]),
        ([[1, 2], []], {"listed": True, "separator": ",", "brackets": True}, ["['Ur','unknown']", "[]"]),
        ([[1, 2, 3]], {"listed": True, "max_length": 2}, None),
        ([1, None], {}, None),
    ],
)
def test_ids(stored: list[Any], keys: dict[str, Any], wanted: list[Any] | None) -> None:
    assert inverted(stored, **keys) == wanted


@given(st.lists(st.decimals(0, 5000, places=2).map(float), min_size=1, max_size=20), st.booleans())
@settings(max_examples=100, deadline=None)
def test_short_decimals_are_found_behind_logarithms(numbers: list[float], signed: bool) -> None:
    feature = RawFeature(
        name="price", column="price", kind="dense", values="number", transform="signed_log" if signed else "log1p"
    )
    rows = [{"price": math.log(1 + number)} for number in numbers]
    found, lacking = raw_rows_of(RawRows(features=[feature]), [FeatureSpec(name="price", kind="dense")], {}, {}, rows)
    assert lacking == []
    assert [math.log(1 + row["price"]) for row in found] == [row["price"] for row in rows]
