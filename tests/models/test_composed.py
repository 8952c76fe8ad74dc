"""The whole model: parts that do not fit each other are named by their key."""

from __future__ import annotations

import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.models.composed import MultitaskRanker
from dlrm_mtl.models.config import ModelConfig
from tests.models.inputs import inputs


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            {"multitask": {"name": "ple", "levels": [[8]], "task_experts": [1, 2, 1]}},
            "model.multitask: task_experts [1, 2, 1] has 3 entries and there are 2 tasks; give one number, or one per task.",
        ),
        (
            {"interaction": {"name": "dot"}},
            "model.interaction: dot multiplies the dense features with pooled ones of width 4 and they are 3 wide; "
            "let model.dense.layers end in 4.",
        ),
        (
            {"embeddings": {"dim": 4, "features": {"histry": "sum"}}},
            "model.embeddings.features.histry: there is no such feature; did you mean 'history'? "
            "there are: history, item, user.",
        ),
    ],
)
def test_parts_that_do_not_fit(model: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        MultitaskRanker(ModelConfig.model_validate({"embeddings": {"dim": 4}, **model}), inputs(dense=3))
    assert str(error.value) == sentence


def test_the_interaction_sees_every_vector() -> None:
    content = {"embeddings": {"dim": 4}, "interaction": {"name": "dot"}, "dense": {"layers": [4]}}
    model = MultitaskRanker(ModelConfig.model_validate(content), inputs(dense=3))
    assert model.interaction.out_features == 4 + 6
    content["embeddings"] = {"dim": 4, "features": {"history": {"pooling": "flattened", "length": 3}}}
    model = MultitaskRanker(ModelConfig.model_validate(content), inputs(dense=3))
    assert model.lookup.fields == [4] * 5
    assert model.interaction.out_features == 4 + 15
