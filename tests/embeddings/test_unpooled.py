"""The two-phase update of unpooled tables, one row per id, against a literal one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.processes import run_processes

ROWS, DIM, BATCH = {"a": 30, "b": 12}, 8, 8
RULE = {"learning_rate": 0.5, "lambda_rel": 0.3, "lambda_abs": 0.01}


def initial(table: str) -> Tensor:
    return torch.randn(ROWS[table], DIM, generator=torch.Generator().manual_seed(len(table) + ord(table))) * 0.1


def ids_of(step: int) -> dict[str, list[list[int]]]:
    generator = torch.Generator().manual_seed(step)
    return {
        table: [
            torch.randint(0, rows, (int(n),), generator=generator).tolist()
            for n in torch.randint(0, 4, (BATCH,), generator=generator)
        ]
        for table, rows in ROWS.items()
    }


def loss(rows: Tensor) -> Tensor:
    """[n, DIM] -> a number that is not linear in the rows."""
    return (torch.sin(3 * rows) * torch.arange(1.0, DIM + 1)).sum()


class Model(nn.Module):
    """A collection and a parameter to keep DDP busy."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, ids: Any) -> Tensor:
        out = self.tables(ids)
        return torch.stack([loss(out[table].values()) for table in ROWS]).sum() + 0.0 * self.scale


def train(rank: int, sharding: str, steps: int) -> dict[str, Tensor | None]:
    """Weights after some steps under a plan."""
    import torch.distributed as dist
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology

    from dlrm_mtl.embeddings.rules import ClippyRowWiseAdagrad
    from dlrm_mtl.embeddings.torchrec.sharders import two_phase_sharders
    from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer
    from tests.embeddings.two_phase_model import whole

    world_size = dist.get_world_size()
    configs = [EmbeddingConfig(name=t, num_embeddings=n, embedding_dim=DIM, feature_names=[t]) for t, n in ROWS.items()]
    model = Model(EmbeddingCollection(tables=configs, device=torch.device("meta")))
    constraints = {t: ParameterConstraints(sharding_types=[sharding], min_partition=4) for t in ROWS}
    topology = Topology(world_size=world_size, local_world_size=world_size, compute_device="cpu")
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    plan = planner.collective_plan(model, two_phase_sharders(), dist.GroupMember.WORLD)
    sharded = DistributedModelParallel(model, plan=plan, sharders=two_phase_sharders())
    with torch.no_grad():
        for key, value in sharded.state_dict().items():
            if not key.endswith(".weight"):
                continue
            table = initial(key.split(".")[-2])
            for part in value.local_shards() if hasattr(value, "local_shards") else []:
                (row, column), (rows, columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
                part.tensor.copy_(table[row : row + rows, column : column + columns])
            if not hasattr(value, "local_shards"):
                value.copy_(table)
    optimizer = TwoPhaseOptimizer(sharded, ClippyRowWiseAdagrad(**RULE))
    for step in range(steps):
        own = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
        bags = {table: ids[own] for table, ids in ids_of(step).items()}
        keyed = KeyedJaggedTensor(
            keys=list(ROWS),
            values=torch.tensor([i for table in ROWS for bag in bags[table] for i in bag], dtype=torch.int64),
            lengths=torch.tensor([len(bag) for table in ROWS for bag in bags[table]], dtype=torch.int32),
        )
        (sharded(keyed) * world_size).backward()
        optimizer.step()
    return {k.split(".")[-2]: whole(v) for k, v in sharded.state_dict().items() if k.endswith(".weight")}


def literal(steps: int) -> dict[str, Tensor]:
    weights = {table: initial(table) for table in ROWS}
    accumulators = {table: torch.full((rows, 1), 0.1) for table, rows in ROWS.items()}
    for step in range(steps):
        ids = ids_of(step)
        for table, weight in weights.items():
            leaf = weight.clone().requires_grad_()
            loss(leaf[[i for bag in ids[table] for i in bag]]).backward()
            assert leaf.grad is not None
            accumulators[table] += leaf.grad.pow(2).mean(dim=1, keepdim=True)
            move = RULE["learning_rate"] * leaf.grad / accumulators[table].sqrt()
            limit = RULE["lambda_rel"] * weight.abs() + RULE["lambda_abs"]
            factor = torch.where(move == 0, torch.ones_like(move), limit / move.abs()).min().clamp(max=1.0)
            weight -= factor * move
    return weights


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_unpooled_tables(sharding: str) -> None:
    weights = run_processes(2, train, sharding, 10)[0]
    for table, wanted in literal(10).items():
        torch.testing.assert_close(weights[table], wanted, rtol=1e-5, atol=1e-6)
