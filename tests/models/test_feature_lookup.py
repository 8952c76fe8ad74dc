"""Features as vectors: pooled, flattened and both from one table, against literal loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from dlrm_mtl.data.keyed_ids import PlainKeyedIds
from dlrm_mtl.embeddings.local_tables import TensorTable, local_tables
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.registry import build_ranking_model
from tests.models.inputs import bags, batch, inputs, on_cpu, table

POOLINGS: list[dict[str, Any]] = [
    {},
    {"item": "sum", "history": "mean"},
    {"history": {"pooling": "flattened", "length": 3}},
    {"history": {"pooling": "flattened", "length": 9}, "item": "sum"},
    {"history": {"pooling": "flattened", "length": 1}, "user": {"pooling": "flattened", "length": 2}},
]


def literal(weights: Tensor, ids: list[int], pooling: Any) -> Tensor:
    if isinstance(pooling, str):
        total = sum((weights[i] for i in ids), torch.zeros(weights.shape[1]))
        return total / max(len(ids), 1) if pooling == "mean" else total
    recent = list(reversed(ids))[: pooling["length"]]
    rows = [weights[i] for i in recent] + [torch.zeros(weights.shape[1])] * (pooling["length"] - len(recent))
    return torch.cat(rows)


@pytest.mark.parametrize("features", POOLINGS)
@pytest.mark.parametrize("rows", [1, 8])
def test_against_literal_loops(features: dict[str, Any], rows: int) -> None:
    content = {"embeddings": {"dim": 4, "features": features, "tables": {"user": {"pooling": "sum"}}}}
    model = on_cpu(build_ranking_model(ModelConfig.model_validate(content), inputs()))
    b = batch(rows, seed=3)
    found = model.lookup(b.sparse)
    weights = {name: table(model, name).clone().requires_grad_() for name in ("user", "item")}
    wanted = []
    for row in range(rows):
        parts = []
        for key, name in (("user", "user"), ("item", "item"), ("history", "item")):
            pooling = features.get(key, "sum" if key == "user" else "mean")
            parts.append(literal(weights[name], bags(b, key)[row], pooling))
        wanted.append(torch.cat(parts))
    assert found.shape == (rows, sum(model.lookup.widths))
    assert sum(model.lookup.fields) == sum(model.lookup.widths)
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-6, atol=1e-6)
    slope = torch.randn(found.shape[1])
    (found.square() @ slope).sum().backward()
    (torch.stack(wanted).square() @ slope).sum().backward()
    for key, parameter in model.lookup.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[key.split(".")[-2]].grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", POOLINGS)
def test_means_at_once_are_the_same_bits(features: dict[str, Any]) -> None:
    """The form for GPUs, compared with the division feature by feature that the literal loops confirm."""
    content = {"embeddings": {"dim": 4, "features": features, "tables": {"user": {"pooling": "sum"}}}}
    model = on_cpu(build_ranking_model(ModelConfig.model_validate(content), inputs()))
    b = batch(8, seed=3)
    found, tables = model.lookup(b.sparse), model.lookup.table_set
    model.lookup.table_set = dataclasses.replace(tables, means=frozenset())
    sums = model.lookup(b.sparse)
    model.lookup.table_set = tables
    assert torch.equal(model.lookup.means(sums, b.sparse), found)


@pytest.mark.parametrize("features", POOLINGS)
def test_local_tables_give_the_same_bits(features: dict[str, Any]) -> None:
    """Lookups in serving, without TorchRec, equal TorchRec's."""
    config = ModelConfig.model_validate({"embeddings": {"dim": 8, "features": features}})
    theirs = on_cpu(build_ranking_model(config, inputs()))
    rows = {name: TensorTable(table(theirs, name).detach()) for name in ("user", "item")}
    ours = build_ranking_model(config, inputs(), lambda tables: local_tables(tables, rows))
    b = batch(50, seed=4)
    plain = PlainKeyedIds(b.sparse.keys(), b.sparse.values(), b.sparse.lengths(), b.sparse.stride())
    assert torch.equal(ours.lookup(plain), theirs.lookup(b.sparse))
    assert not any("lookup" in name for name in ours.state_dict())
