"""The whole model: parts that do not fit each other are named by their key."""

from __future__ import annotations

import pytest
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from dlrm_mtl.errors import UserError
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.ranker import MultitaskRanker


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
    ],
)
def test_parts_that_do_not_fit(model: dict[str, object], sentence: str) -> None:
    tables = EmbeddingBagCollection(
        [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=5, feature_names=["a", "b"])]
    )
    with pytest.raises(UserError) as error:
        MultitaskRanker(tables, 3, 2, ModelConfig.model_validate(model))
    assert str(error.value) == sentence
    fitting = ModelConfig.model_validate({"interaction": {"name": "dot"}, "dense": {"layers": [4]}})
    assert MultitaskRanker(tables, 3, 2, fitting).interaction.out_features == 4 + 3
