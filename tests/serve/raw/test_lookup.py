"""Vocabularies as mapped arrays give every value its id, and no other text one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.serve.raw.lookup import UNKNOWN, ValueIds, arrange, hashes

TEXTS = st.text(alphabet="ab\0ü東", max_size=5) | st.text()


@given(st.lists(TEXTS, unique=True, max_size=30), st.lists(TEXTS, max_size=20), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_every_value_has_its_id(values: list[str], others: list[str], first: int) -> None:
    ids = np.arange(1, len(values) + 1)[::-1].copy()
    tensors, seed = arrange(pa.array(values, pa.string()), ids, "item")
    vocabulary = ValueIds.load(tensors, "item", seed)
    wanted = dict(zip(values, ids.tolist(), strict=True))
    asked = pa.array([*values, *others], pa.string())
    found = vocabulary.find(asked).tolist()
    assert found == [wanted.get(text, UNKNOWN) for text in asked.to_pylist()]
    assert vocabulary.find(asked.slice(first)).tolist() == found[first:], "a part of an array"


def test_a_text_with_the_hash_of_another_has_no_id() -> None:
    values = pa.array(["lamp", "rug"])
    tensors, seed = arrange(values, np.array([1, 2]), "item")
    stranger = np.frombuffer(b"xyz", np.uint8)
    (own,) = hashes(stranger, np.array([0, 3]), seed)
    tensors["hashes.item"][:] = int(own.astype(np.int64))
    vocabulary = ValueIds.load(tensors, "item", seed)
    assert vocabulary.find(pa.array(["xyz", "xyzw"])).tolist() == [UNKNOWN, UNKNOWN]
