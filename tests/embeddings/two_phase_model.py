"""A small model on tables for tests of the two-phase update, and the same thing written out without any of its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TABLES = {"a": (40, 8), "b": (25, 16), "c": (9, 16)}
"""Rows and columns."""
FEATURES = {"f0": "a", "f1": "b", "f2": "b", "f3": "c"}
MEAN_LENGTHS = {"f0": 2, "f1": 1, "f2": 3, "f3": 1}
BATCH = 16
SHARDING_TYPES = [
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]


def initial_weights(table: str) -> Tensor:
    """[rows, dim] the weights that every test begins with."""
    generator = torch.Generator().manual_seed(sum(table.encode()))
    return torch.randn(TABLES[table], generator=generator) * 0.1


def batch(step: int) -> tuple[dict[str, list[list[int]]], dict[str, list[list[float]]], Tensor]:
    """Ids of each bag and their weights by feature, and a target [B]; hot ids and empty bags included."""
    generator = torch.Generator().manual_seed(step)
    ids, weights = {}, {}
    for feature, table in FEATURES.items():
        lengths = torch.randint(0, 2 * MEAN_LENGTHS[feature] + 1, (BATCH,), generator=generator).tolist()
        rows = TABLES[table][0]
        bags = [(torch.rand(n, generator=generator) ** 3 * rows).long().tolist() for n in lengths]
        ids[feature] = bags
        weights[feature] = [torch.rand(len(bag), generator=generator).tolist() for bag in bags]
    return ids, weights, torch.randn(BATCH, generator=generator)


def head() -> Tensor:
    """[sum of dims] what turns pooled features into a number; large, so that clipping happens."""
    width = sum(TABLES[table][1] for table in FEATURES.values())
    return torch.randn(width, generator=torch.Generator().manual_seed(5)) * 3


class Reference:
    """The literal, unsharded update: one dense gradient per table, every rule written out."""

    def __init__(self, rule: dict[str, Any], pooling: str = "sum", weighted: bool = False) -> None:
        self.rule = rule
        self.pooling = pooling
        self.weighted = weighted
        self.weights = {table: initial_weights(table) for table in TABLES}
        self.accumulators = {table: torch.full((TABLES[table][0],), rule.get("initial", 0.1)) for table in TABLES}
        self.factors: list[dict[str, float]] = []

    def loss(self, tables: dict[str, Tensor], step: int) -> Tensor:
        ids, weights, target = batch(step)
        rows = []
        for bag in range(BATCH):
            pooled = []
            for feature, table in FEATURES.items():
                total = torch.zeros(TABLES[table][1])
                for row, weight in zip(ids[feature][bag], weights[feature][bag], strict=True):
                    total = total + tables[table][row] * (weight if self.weighted else 1.0)
                count = max(len(ids[feature][bag]), 1)
                pooled.append(total / count if self.pooling == "mean" else total)
            rows.append(torch.cat(pooled))
        return ((torch.tanh(torch.stack(rows)) @ head() - target) ** 2).mean()

    def step(self, *steps: int) -> None:
        """One update with the gradients of the given batches together."""
        leaves = {table: weight.clone().requires_grad_() for table, weight in self.weights.items()}
        for step in steps:
            self.loss(leaves, step).backward()
        factors = {}
        for table, leaf in leaves.items():
            gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
            factors[table] = self.update(table, gradient)
        self.factors.append(factors)

    def update(self, table: str, gradient: Tensor) -> float:
        rule, weights, accumulators = self.rule, self.weights[table], self.accumulators[table]
        rate = rule["lr"] * rule.get("rates", {}).get(table, 1.0)
        if rate == 0:
            return 1.0
        before = accumulators.clone()
        accumulators += gradient.pow(2).mean(dim=1)
        divisor = (before if rule.get("delayed") else accumulators).sqrt().unsqueeze(1)
        move = rate * gradient / divisor
        limit = rule["rel"] * weights.abs() + rule["abs"]
        ratio = torch.where(move == 0, torch.ones_like(move), limit / move.abs()).clamp(max=1.0)
        factor = ratio.amin(dim=1, keepdim=True) if rule.get("per_row") else ratio.min()
        weights -= factor * move
        return float(factor.min())


class Model(nn.Module):
    """The same model for sharding."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("head", head())

    def forward(self, ids: Any, target: Tensor) -> Tensor:
        pooled = self.tables(ids).to_dict()
        features = torch.cat([pooled[name] for name in FEATURES], dim=1)
        # The parameter keeps DDP busy and takes no part in the result.
        return ((torch.tanh(features) @ self.head - target + 0.0 * self.scale) ** 2).sum()


def local_batch(step: int, rank: int, world_size: int, weighted: bool) -> tuple[Any, Tensor]:
    """This process's rows of a batch, as TorchRec takes them."""
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    ids, weights, target = batch(step)
    own = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    values = [i for feature in FEATURES for bag in ids[feature][own] for i in bag]
    factors = [w for feature in FEATURES for bag in weights[feature][own] for w in bag]
    lengths = [len(bag) for feature in FEATURES for bag in ids[feature][own]]
    keyed = KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.tensor(values, dtype=torch.int64),
        lengths=torch.tensor(lengths, dtype=torch.int32),
        weights=torch.tensor(factors) if weighted else None,
    )
    return keyed, target[own]


def shard(
    sharding: dict[str, Any], pooling: str = "sum", weighted: bool = False, half: bool = False, model: Any = Model
) -> Any:
    """The model under a plan, with its first weights."""
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.modules.embedding_configs import DataType

    from dlrm_mtl.embeddings.config import ShardingConfig
    from dlrm_mtl.embeddings.tables import EmbeddingTable
    from dlrm_mtl.embeddings.torchrec.plan import make_plan
    from dlrm_mtl.embeddings.torchrec.sharders import two_phase_sharders

    configs = [
        EmbeddingBagConfig(
            name=table,
            num_embeddings=rows,
            embedding_dim=dim,
            feature_names=[feature for feature, owner in FEATURES.items() if owner == table],
            pooling=PoolingType[pooling.upper()],
            data_type=DataType.FP16 if half else DataType.FP32,
        )
        for table, (rows, dim) in TABLES.items()
    ]
    collection = EmbeddingBagCollection(configs, device=torch.device("meta"), is_weighted=weighted)
    whole_model = model(collection)
    tables = [EmbeddingTable(one.name, one.num_embeddings, one.embedding_dim, one.feature_names) for one in configs]
    plan = make_plan(whole_model, tables, ShardingConfig.model_validate(sharding), torch.device("cpu"), BATCH)
    sharded = DistributedModelParallel(whole_model, plan=plan, sharders=two_phase_sharders())
    set_weights(sharded)
    return sharded


@torch.no_grad()
def set_weights(model: nn.Module) -> None:
    """Fill the shards of this process with :func:`initial_weights`."""
    for key, value in model.state_dict().items():
        if not key.endswith(".weight"):
            continue
        whole = initial_weights(key.split(".")[-2])
        if hasattr(value, "local_shards"):
            for part in value.local_shards():
                (row, column), (rows, columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
                part.tensor.copy_(whole[row : row + rows, column : column + columns])
        else:
            value.copy_(whole)


def whole(value: Any) -> Tensor | None:
    """A sharded or plain tensor put together on the first process; to be called on all."""
    import torch.distributed as dist

    if not hasattr(value, "local_shards"):
        return value.detach().clone()
    out = torch.empty(value.size(), dtype=value.dtype) if dist.get_rank() == 0 else None
    value.gather(0, out, dtype=value.dtype)  # otherwise by way of float32
    return out


def tables_of(model: nn.Module, optimizer: Any) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """Weights and accumulators of all tables, whole, on the first process."""
    state = model.state_dict()
    weights = {key.split(".")[-2]: whole(value) for key, value in state.items() if key.endswith(".weight")}
    by_table = optimizer.state_by_table()
    accumulators = {name.rpartition(".")[2]: whole(value["accumulator"]) for name, value in by_table.items()}
    return weights, accumulators
