"""Look-ups in the description of a data set."""

from __future__ import annotations

import pytest

from dlrm_mtl.data.spec import DatasetSpec

SPEC = DatasetSpec.model_validate(
    {
        "name": "x",
        "splits": {"train": {"folder": "train"}},
        "features": [{"name": "user", "kind": "sparse", "unbounded": True}, {"name": "age", "kind": "dense"}],
        "labels": [{"name": "click"}],
    }
)


def test_a_copy_looks_up_its_own_features() -> None:
    assert SPEC.feature("user").vocabulary_size is None  # from now on, the features are known by name
    copy = SPEC.with_rows({"user": 10})
    assert copy.feature("user").vocabulary_size == 10
    assert copy.model_copy(update={"features": SPEC.features[1:]}).by_name.keys() == {"age"}
    with pytest.raises(KeyError):
        SPEC.feature("usr")


def test_look_ups_change_neither_equality_nor_the_text() -> None:
    other = DatasetSpec.model_validate(SPEC.model_dump())
    assert SPEC.feature("age").kind == "dense"
    assert other == SPEC
    assert "by_name" not in SPEC.model_dump()
