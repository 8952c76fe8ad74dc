"""Placement of the tables: sharder, plan, and the plan as a readable table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import memory_bytes
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.embeddings.config import ShardingConfig, TableSharding
from dlrm_mtl.embeddings.tables import Table
from dlrm_mtl.embeddings.torchrec.sharders import UnpooledSharder, two_phase_sharders

COLUMN_SPLITTING = {"column_wise", "table_column_wise", "grid_shard"}
HOST_BASED = {"table_row_wise", "grid_shard"}


@dataclass(frozen=True)
class Processes:
    """Layout of a run's processes over hosts."""

    world_size: int
    per_host: int

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return self.world_size // self.per_host


def processes(config: ShardingConfig, world_size: int) -> Processes:
    """Read the layout from the configuration or the launcher, and pass it to TorchRec.

    Raises:
        UserError: the processes of a host do not divide the world size.
    """
    per_host = min(config.processes_per_host or int(os.environ.get("LOCAL_WORLD_SIZE", world_size)), world_size)
    if world_size % per_host:
        raise UserError(
            f"sharding.processes_per_host: {per_host} does not divide the {world_size} processes of this run; "
            "set it to a divisor or start the same number of processes on every host."
        )
    # table_row_wise and grid_shard form their process groups by this variable, not by the planner's topology.
    os.environ["LOCAL_WORLD_SIZE"] = str(per_host)
    return Processes(world_size, per_host)


def make_plan(
    model: nn.Module, tables: Sequence[Table], config: ShardingConfig, device: torch.device, batch_size: int
) -> ShardingPlan:
    """Place the tables by TorchRec's planner, within the limits of ``config``. The plan is the same on every process.

    Args:
        model: model whose collections hold ``tables``.
        tables: the tables.
        config: the ``sharding`` part of the configuration.
        device: device of the tables; its type chooses the planner's cost model.
        batch_size: rows of a global batch, for the planner's estimates.

    Raises:
        UserError: a sharding does not fit the tables, the processes or the memory.
    """
    layout = processes(config, dist.get_world_size())
    unknown = sorted(set(config.tables) - {table.name for table in tables})
    if unknown:
        hint = suggest(unknown[0], [table.name for table in tables])
        raise UserError(f"sharding.tables.{unknown[0]}: there is no such table; {hint}.")
    constraints = {table.name: _constraint(table, config, layout) for table in tables}
    topology = Topology(
        world_size=layout.world_size,
        local_world_size=layout.per_host,
        compute_device=device.type,
        ddr_cap=memory_bytes() // layout.per_host,
        **({"hbm_cap": torch.cuda.get_device_properties(device).total_memory} if device.type == "cuda" else {}),
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=max(batch_size // layout.world_size, 1),
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
    )
    group = dist.GroupMember.WORLD
    assert group is not None
    try:
        return planner.collective_plan(model, two_phase_sharders(), group)
    except PlannerError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"sharding: no plan fits {layout.world_size} processes ({first}); "
            "use smaller tables, more processes or more memory per process."
        ) from None


def _constraint(table: Table, config: ShardingConfig, layout: Processes) -> ParameterConstraints:
    choice = config.tables.get(table.name, TableSharding(type=config.default))
    place = f"sharding.tables.{table.name}" if table.name in config.tables else "sharding.default"
    if choice.column_shards and choice.type not in COLUMN_SPLITTING:
        raise UserError(
            f"{place}.column_shards: {choice.type} does not cut columns; remove the key or choose one of "
            f"{', '.join(sorted(COLUMN_SPLITTING))}."
        )
    if not table.pooled:
        possible = UnpooledSharder().sharding_types("cpu")
        if choice.type not in ("auto", *possible):
            raise UserError(
                f"{place}: {choice.type} cannot hold table {table.name}, which serves a flattened feature; under "
                f"sharding.tables.{table.name}, choose one of {', '.join(sorted(possible))}."
            )
    kernel = "dense" if choice.type == "data_parallel" else "fused"
    return ParameterConstraints(
        sharding_types=_automatic(table, layout) if choice.type == "auto" else [effective_type(choice.type, layout)],
        compute_kernels=[kernel],
        min_partition=_shard_width(table, choice, layout, place),
    )


def effective_type(sharding_type: str, layout: Processes) -> str:
    """Sharding type that is equivalent in this layout.

    On one host, a table cut by rows over the processes of its host is a table cut by rows; TorchRec then has no process
    groups for the former. So a configuration for a cluster runs unchanged on a laptop.
    """
    return "row_wise" if layout.hosts == 1 and sharding_type in HOST_BASED else sharding_type


def _automatic(table: Table, layout: Processes) -> list[str]:
    """Types that the planner may choose from: no column splits, which only pay off for very wide tables."""
    types = ["table_wise", "row_wise"]
    return [*types, "table_row_wise"] if layout.hosts > 1 and table.pooled else types


def _shard_width(table: Table, choice: TableSharding, layout: Processes, place: str) -> int:
    """Number of columns of each shard of a table whose columns are cut."""
    wanted = {"column_wise": layout.world_size, "table_column_wise": layout.per_host, "grid_shard": layout.hosts}
    shards = choice.column_shards or wanted.get(choice.type, 1)
    dim = table.embedding_dim
    if choice.column_shards and (dim % shards or (dim // shards) % 4):
        possible = ", ".join(str(n) for n in range(1, dim // 4 + 1) if dim % (4 * n) == 0)
        raise UserError(
            f"{place}.column_shards: {shards} does not cut the {dim} columns of table {table.name} into equal parts whose "
            f"width is a multiple of 4; choose one of {possible}."
        )
    while dim % (4 * shards):
        shards -= 1
    return dim // shards


def describe_plan(plan: ShardingPlan, tables: Sequence[Table]) -> list[dict[str, Any]]:
    """The plan as one dictionary per table: table, rows, dim, type, MiB of weights, and the shards with their ranks."""
    placed: dict[str, Any] = {}
    for module in plan.plan.values():
        assert isinstance(module, EmbeddingModuleShardingPlan)
        placed.update(module)
    described = []
    for table in tables:
        sharding = placed[table.name]
        shards = [
            {
                "rank": shard.placement.rank(),
                "offsets": list(shard.shard_offsets),
                "sizes": list(shard.shard_sizes),
            }
            for shard in (sharding.sharding_spec.shards if sharding.sharding_spec else [])
        ]
        described.append(
            {
                "table": table.name,
                "rows": table.num_embeddings,
                "dim": table.embedding_dim,
                "features": list(table.feature_names),
                "type": sharding.sharding_type,
                "ranks": sorted({shard["rank"] for shard in shards}) or "all",
                "mib": round(table.num_embeddings * table.embedding_dim * 4 / 2**20, 2),
                "shards": shards,
            }
        )
    return described
