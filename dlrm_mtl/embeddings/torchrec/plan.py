"""Placement of the tables: sharder, plan, and the plan as a readable table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
from dlrm_mtl.embeddings.rules.base import StateSpec
from dlrm_mtl.embeddings.tables import EmbeddingTable
from dlrm_mtl.embeddings.torchrec.proposer import proposers
from dlrm_mtl.embeddings.torchrec.sharders import UnpooledSharder, two_phase_sharders

COLUMN_SPLITTING = {"column_wise", "table_column_wise", "grid_shard"}
HOST_BASED = {"table_row_wise", "grid_shard"}
RESERVED = 0.15
"""The share of the memory that is not for tables."""
FLOAT = 4
"""Bytes of a weight."""
MIB = 2**20


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
    layout = layout_of(config, world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    # table_row_wise and grid_shard form their process groups by this variable, not by the planner's topology.
    os.environ["LOCAL_WORLD_SIZE"] = str(layout.per_host)
    return layout


def layout_of(config: ShardingConfig, world_size: int, per_host: int) -> Processes:
    """The layout of ``world_size`` processes, ``per_host`` on each host unless the configuration says otherwise.

    Raises:
        UserError: the processes of a host do not divide the world size.
    """
    per_host = min(config.processes_per_host or per_host, world_size)
    if world_size % per_host:
        raise UserError(
            f"sharding.processes_per_host: {per_host} does not divide the {world_size} processes of this run; "
            "set it to a divisor or start the same number of processes on every host."
        )
    return Processes(world_size, per_host)


@dataclass(frozen=True)
class Room:
    """Memory for tables."""

    host: int
    """Bytes of a host, which its processes share."""
    gpu: int | None = None
    """Bytes of a GPU, one for each process; None where tables live on the CPU."""

    def of_process(self, layout: Processes) -> int:
        """Bytes of a process, on the device where its tables live."""
        return self.host // layout.per_host if self.gpu is None else self.gpu


def own_room(device: torch.device) -> Room:
    """The memory of this machine, and of ``device`` if that is a GPU."""
    gpu = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return Room(memory_bytes(), gpu)


def make_plan(
    model: nn.Module, tables: Sequence[EmbeddingTable], config: ShardingConfig, device: torch.device, batch_size: int
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
    layout, room = processes(config, dist.get_world_size()), own_room(device)
    planner = _planner(tables, config, layout, room, batch_size)
    group = dist.GroupMember.WORLD
    assert group is not None
    with _plan_or_sentence(tables, layout, room):
        return planner.collective_plan(model, two_phase_sharders(), group)


def foresee_plan(
    model: nn.Module,
    tables: Sequence[EmbeddingTable],
    config: ShardingConfig,
    layout: Processes,
    room: Room,
    batch_size: int,
) -> ShardingPlan:
    """The plan that :func:`make_plan` would make in ``layout`` with the memory ``room``, in this process alone.

    Raises:
        UserError: a sharding does not fit the tables, the processes or the memory.
    """
    planner = _planner(tables, config, layout, room, batch_size)
    with _plan_or_sentence(tables, layout, room):
        return planner.plan(model, two_phase_sharders())


def _planner(
    tables: Sequence[EmbeddingTable], config: ShardingConfig, layout: Processes, room: Room, batch_size: int
) -> EmbeddingShardingPlanner:
    check_names(tables, config)
    constraints = {table.name: _constraint(table, config, layout) for table in tables}
    topology = Topology(
        world_size=layout.world_size,
        local_world_size=layout.per_host,
        compute_device="cpu" if room.gpu is None else "cuda",
        ddr_cap=room.host // layout.per_host,
        **({} if room.gpu is None else {"hbm_cap": room.gpu}),
    )
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=max(batch_size // layout.world_size, 1),
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(percentage=RESERVED),
        proposer=proposers(len(tables)),
    )


@contextmanager
def _plan_or_sentence(tables: Sequence[EmbeddingTable], layout: Processes, room: Room) -> Iterator[None]:
    try:
        yield
    except PlannerError as error:
        first = str(error).strip().splitlines()[0]
        weights = sum(table.num_embeddings * table.embedding_dim for table in tables) * FLOAT
        raise UserError(
            f"sharding: no plan fits {layout.world_size} processes ({first}): the tables hold {weights / MIB:,.0f} MiB of "
            f"weights, and {1 - RESERVED:.0%} of {room.of_process(layout) / MIB:,.0f} MiB is for the tables of a process; use "
            "smaller tables, more processes or more memory per process."
        ) from None


def _constraint(table: EmbeddingTable, config: ShardingConfig, layout: Processes) -> ParameterConstraints:
    place, choice = checked_choice(table, config)
    kernel = "dense" if choice.type == "data_parallel" else "fused"
    return ParameterConstraints(
        sharding_types=_automatic(table, layout) if choice.type == "auto" else [effective_type(choice.type, layout)],
        compute_kernels=[kernel],
        min_partition=table.embedding_dim // column_shards(table, choice, layout, place),
    )


def check_names(tables: Sequence[EmbeddingTable], config: ShardingConfig) -> None:
    """Raise :class:`UserError` if an entry of ``config.tables`` names no table."""
    names = [table.name for table in tables]
    for key in sorted(config.tables):
        if key not in names and not any(fnmatchcase(name, key) for name in names):
            what = "no table has a name like this" if set(key) & set("*?[") else "there is no such table"
            raise UserError(f"sharding.tables.{key}: {what}; {suggest(key, names)}.")


def checked_choice(table: EmbeddingTable, config: ShardingConfig) -> tuple[str, TableSharding]:
    """The sharding that the configuration names for ``table``, and its place there.

    Raises:
        UserError: the sharding does not fit the table.
    """
    place, choice = config.of(table.name)
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
    return place, choice


def effective_type(sharding_type: str, layout: Processes) -> str:
    """Sharding type that is equivalent in this layout.

    On one host, a table cut by rows over the processes of its host is a table cut by rows; TorchRec then has no process
    groups for the former. So a configuration for a cluster runs unchanged on a laptop.
    """
    return "row_wise" if layout.hosts == 1 and sharding_type in HOST_BASED else sharding_type


def _automatic(table: EmbeddingTable, layout: Processes) -> list[str]:
    """Types that the planner may choose from: no column splits, which only pay off for very wide tables."""
    types = ["table_wise", "row_wise"]
    return [*types, "table_row_wise"] if layout.hosts > 1 and table.pooled else types


def column_shards(table: EmbeddingTable, choice: TableSharding, layout: Processes, place: str) -> int:
    """Number of parts that the columns of a table are cut into.

    Raises:
        UserError: the number at ``place`` in the configuration does not fit the table.
    """
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
    return shards


def describe_plan(
    plan: ShardingPlan, tables: Sequence[EmbeddingTable], states: Sequence[StateSpec], world_size: int
) -> list[dict[str, Any]]:
    """The plan as one dictionary per table.

    Args:
        plan: where the tables live.
        tables: the tables.
        states: what the table optimizer keeps.
        world_size: the number of processes.

    Returns:
        For each table: its name, rows, dim, features, sharding type, ranks, MiB of weights, and the shards with their ranks;
        and by process, MiB of weights and of state, the latter with the gradient of a table of which every process has a copy.
    """
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
        weights, state = [0] * world_size, [0] * world_size
        for shard in shards:
            rows, columns = shard["sizes"]
            weights[shard["rank"]] += rows * columns * FLOAT
            state[shard["rank"]] += _state_bytes(rows, columns, states, kept=1)
        if not shards:
            rows, columns = table.num_embeddings, table.embedding_dim
            weights = [rows * columns * FLOAT] * world_size
            state = [_state_bytes(rows, columns, states, kept=0) + rows * columns * FLOAT] * world_size
        described.append(
            {
                "table": table.name,
                "rows": table.num_embeddings,
                "dim": table.embedding_dim,
                "features": list(table.feature_names),
                "type": sharding.sharding_type,
                "ranks": sorted({shard["rank"] for shard in shards}) or "all",
                "mib": round(table.num_embeddings * table.embedding_dim * FLOAT / MIB, 2),
                "weights_mib": [round(size / MIB, 2) for size in weights],
                "state_mib": [round(size / MIB, 2) for size in state],
                "shards": shards,
            }
        )
    return described


def _state_bytes(rows: int, columns: int, states: Sequence[StateSpec], kept: int) -> int:
    """Bytes of a rule's state for a shard; FBGEMM has memory for ``kept`` numbers per row, whether the rule uses it or not."""
    per_row = max(kept, sum(state.per == "row" for state in states))
    per_element = sum(state.per == "element" for state in states)
    return (per_row + per_element * columns) * rows * FLOAT
