"""Tables and their initial weights."""

from __future__ import annotations

import pytest
import torch

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.config import EmbeddingsConfig
from dlrm_mtl.embeddings.kernels.initial_rows import BLOCK_ROWS
from dlrm_mtl.embeddings.tables import fill_rows, mean_features, table_configs

SPEC = DatasetSpec.model_validate(
    {
        "name": "x",
        "splits": {"train": {"folder": "train"}},
        "features": [
            {"name": "user", "kind": "sparse", "vocabulary_size": 10},
            {"name": "item", "kind": "sparse", "vocabulary_size": 20},
            {"name": "history", "kind": "sequence", "vocabulary": "item"},
        ],
        "labels": [{"name": "click"}],
    }
)


def test_features_with_one_vocabulary_share_a_table() -> None:
    config = EmbeddingsConfig.model_validate({"dim": 8, "tables": {"item": {"dim": 16, "pooling": "sum"}}})
    tables = table_configs(SPEC, ["user", "item", "history"], config)
    assert [(t.name, t.num_embeddings, t.embedding_dim, t.feature_names) for t in tables] == [
        ("user", 10, 8, ["user"]),
        ("item", 20, 16, ["item", "history"]),
    ]
    assert mean_features(tables, config) == {"user"}
    assert [t.name for t in table_configs(SPEC, ["history"], config)] == ["item"]


def test_an_override_of_no_table_is_a_mistake() -> None:
    config = EmbeddingsConfig.model_validate({"tables": {"itm": {"dim": 16}}})
    with pytest.raises(UserError, match=r"model\.embeddings\.tables\.itm: .*did you mean 'item'"):
        table_configs(SPEC, ["user", "item"], config)


@pytest.mark.parametrize(("first", "last"), [(0, 10), (5, 4101), (4096, 9000), (8999, 9000)])
@pytest.mark.parametrize(("left", "right"), [(0, 12), (4, 8)])
def test_initial_weights_do_not_depend_on_the_shard(first: int, last: int, left: int, right: int) -> None:
    whole = torch.empty(9000, 12)
    fill_rows(whole, 0, 0, 12, 0.1, "3/user")
    shard = torch.empty(last - first, right - left)
    fill_rows(shard, first, left, 12, 0.1, "3/user")
    assert torch.equal(shard, whole[first:last, left:right])


def test_initial_weights_depend_on_seed_table_and_row() -> None:
    def weights(key: str) -> torch.Tensor:
        values = torch.empty(2 * BLOCK_ROWS, 4)
        fill_rows(values, 0, 0, 4, 0.5, key)
        return values

    one = weights("1/user")
    assert one.mean().item() == pytest.approx(0.0, abs=0.02)
    assert one.std().item() == pytest.approx(0.5, rel=0.02)
    assert not torch.equal(one, weights("2/user"))
    assert not torch.equal(one, weights("1/item"))
    assert len(one.unique(dim=0)) == len(one)
