"""Plans: what may be asked for, and what a mistake looks like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.embeddings.config import ShardingConfig
from dlrm_mtl.embeddings.tables import EmbeddingTable, build_tables
from dlrm_mtl.embeddings.torchrec.plan import Processes, Room, describe_plan, foresee_plan, make_plan
from dlrm_mtl.embeddings.torchrec.proposer import MANY_TABLES, STEPS
from tests.processes import run_processes

TABLES = [
    EmbeddingTable(name="user", num_embeddings=100, embedding_dim=16, feature_names=["user"]),
    EmbeddingTable(name="item", num_embeddings=50, embedding_dim=24, feature_names=["item"]),
]


def plans(rank: int, contents: list[dict[str, Any]]) -> list[Any]:
    """The plan for each configuration, or the mistake in it."""
    results: list[Any] = []
    for content in contents:
        model = nn.ModuleDict({"tables": build_tables(TABLES)})
        config = ShardingConfig.model_validate(content)
        try:
            plan = make_plan(model, TABLES, config, torch.device("cpu"), 64)
            results.append({entry["table"]: entry for entry in describe_plan(plan, TABLES, (), 4)})
        except UserError as error:
            results.append(str(error))
    return results


def test_plans() -> None:
    hosts = {"processes_per_host": 2}
    contents: list[dict[str, Any]] = [
        {"default": "column_wise", "tables": {"item": {"type": "column_wise", "column_shards": 3}}},
        {"default": "grid_shard", **hosts},
        {"default": "table_row_wise", "tables": {"user": "data_parallel"}, "processes_per_host": 4},
        {"tables": {"usr": "row_wise"}},
        {"tables": {"item": {"type": "column_wise", "column_shards": 5}}},
        {"tables": {"item": {"type": "row_wise", "column_shards": 2}}},
        {"default": "row_wise", "processes_per_host": 3},
    ]
    columns, grid, one_host, no_table, uneven, no_cut, hosts_differ = run_processes(4, plans, contents)[0]
    assert [shard["sizes"] for shard in columns["item"]["shards"]] == [[50, 8]] * 3
    assert [shard["sizes"] for shard in columns["user"]["shards"]] == [[100, 4]] * 4
    assert sorted((*s["offsets"], *s["sizes"]) for s in grid["user"]["shards"]) == [
        (0, 0, 50, 8),
        (0, 8, 50, 8),
        (50, 0, 50, 8),
        (50, 8, 50, 8),
    ]
    assert grid["user"]["ranks"] == [0, 1, 2, 3]
    assert one_host["item"]["type"] == "row_wise", "on one host, that is what table_row_wise comes to"
    assert one_host["user"]["ranks"] == "all"
    assert no_table == "sharding.tables.usr: there is no such table; did you mean 'user'? there are: item, user."
    assert "column_shards: 5 does not cut the 24 columns of table item" in uneven
    assert "choose one of 1, 2, 3, 6" in uneven
    assert "row_wise does not cut columns" in no_cut
    assert "processes_per_host: 3 does not divide the 4 processes" in hosts_differ


def test_a_table_that_does_not_fit_is_a_mistake() -> None:
    (message,) = run_processes(1, too_large)
    assert message.startswith("sharding: no plan fits 1 processes")


def too_large(rank: int) -> str:
    """The mistake for a table of more memory than any machine has."""
    tables = [EmbeddingTable(name="user", num_embeddings=10**12, embedding_dim=64, feature_names=["user"])]
    model = nn.ModuleDict({"tables": build_tables(tables)})
    with pytest.raises(UserError) as error:
        make_plan(model, tables, ShardingConfig(), torch.device("cpu"), 64)
    return str(error.value)


def test_a_plan_for_many_tables_takes_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [EmbeddingTable(f"t{n}", 100 + n, 16, [f"t{n}"]) for n in range(MANY_TABLES + 50)]
    model = nn.ModuleDict({"tables": build_tables(tables)})
    tries, partition = [], GreedyPerfPartitioner.partition

    def counted(*arguments: Any, **options: Any) -> Any:
        tries.append(0)
        return partition(*arguments, **options)

    monkeypatch.setattr(GreedyPerfPartitioner, "partition", counted)
    plan = foresee_plan(model, tables, ShardingConfig(), Processes(4, 4), Room(1 << 34), 64)
    assert len(tries) < 3 * STEPS
    placed = describe_plan(plan, tables, (), 4)
    weights = torch.tensor([entry["weights_mib"] for entry in placed]).sum(0)
    assert len(placed) == len(tables)
    assert weights.max() < 1.5 * weights.mean()
