"""Plans in files: where a training puts its tables, written once and used by every process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets, placement
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import Strict, validate
from dlrm_mtl.embeddings.config import TableShardingType
from dlrm_mtl.embeddings.tables import EmbeddingTable
from dlrm_mtl.embeddings.torchrec.plan import COLUMN_SPLITTING, HOST_BASED, Processes

REMEDY = "write a plan for this run with dlrm-mtl plan --write, or remove the key"

Rank = Annotated[int, Field(ge=0)]


class PlannedTable(Strict):
    """One table's place."""

    table: str
    rows: int = Field(gt=0)
    dim: int = Field(gt=0)
    type: TableShardingType
    columns: int = Field(default=1, gt=0)
    """Number of equal parts of the columns."""
    ranks: list[Rank] = Field(default_factory=list)
    """Process of each part of the columns; of table_row_wise and grid_shard, the first process of its host. Empty for tables
    on all processes."""


class PlanFile(Strict):
    """Content of a plan's file."""

    format: Literal[1] = 1
    processes: int = Field(gt=0)
    processes_per_host: int = Field(gt=0)
    tables: list[PlannedTable]


def write_plan(path: Path, plan: PlanFile) -> None:
    """Write a plan as JSON, one line for each table.

    Raises:
        UserError: the file cannot be written.
    """
    head = plan.model_dump(exclude={"tables"})
    lines = ",\n".join(json.dumps(table.model_dump()) for table in plan.tables)
    text = json.dumps(head)[:-1] + ', "tables": [\n' + lines + "\n]}\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name a file in a folder that exists.") from None


def read_plan(
    path: Path, tables: Sequence[EmbeddingTable], layout: Processes, place: str = "sharding.plan"
) -> PlanFile:
    """Read a plan that fits ``tables`` and ``layout``.

    Raises:
        UserError: the file is no plan, or one of other tables or other processes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise UserError(f"{place}: {path} cannot be read ({reason}); {REMEDY}.") from None
    if not isinstance(content, dict) or "processes" not in content:
        raise UserError(f"{place}: {path} is no plan of dlrm-mtl plan --write; {REMEDY}.")
    plan = validate(PlanFile, content, str(path))
    if (plan.processes, plan.processes_per_host) != (layout.world_size, layout.per_host):
        raise UserError(
            f"{place}: {path} is for {plan.processes} processes, {plan.processes_per_host} a host, and this run has "
            f"{layout.world_size}, {layout.per_host} a host; {REMEDY}."
        )
    known = {table.name: table for table in tables}
    for planned in plan.tables:
        table = known.pop(planned.table, None)
        if table is None:
            raise UserError(f"{place}: {path} places a table {planned.table}, which the model lacks; {REMEDY}.")
        if (planned.rows, planned.dim) != (table.num_embeddings, table.embedding_dim):
            raise UserError(
                f"{place}: {path} has table {table.name} with {planned.rows} rows x {planned.dim}, and the model's is "
                f"{table.num_embeddings} x {table.embedding_dim}; {REMEDY}."
            )
        _check_ranks(planned, layout, f"{place}: {path}")
    if known:
        raise UserError(f"{place}: {path} does not place table {next(iter(known))}; {REMEDY}.")
    return plan


def _check_ranks(planned: PlannedTable, layout: Processes, place: str) -> None:
    cuts = planned.columns if planned.type in COLUMN_SPLITTING else 1
    wanted = 0 if planned.type in ("row_wise", "data_parallel") else cuts
    hosts = planned.type in HOST_BASED
    fits = (
        len(planned.ranks) == wanted == len(set(planned.ranks))
        and all(rank < layout.world_size and not (hosts and rank % layout.per_host) for rank in planned.ranks)
        and planned.dim % (4 * cuts) == 0
    )
    if not fits:
        raise UserError(
            f"{place}: the ranks {planned.ranks} and columns {planned.columns} of table {planned.table} do not fit "
            f"{planned.type} on {layout.world_size} processes; {REMEDY}."
        )


def sharding_plan(model: nn.Module, plan: PlanFile, device: str) -> ShardingPlan:
    """TorchRec's form of a plan.

    Args:
        model: model whose collections hold the tables of ``plan``.
        plan: places of all tables.
        device: type of the device of the tables, `cpu` or `cuda`.
    """
    planned = {table.table: table for table in plan.tables}
    found: dict[str, EmbeddingModuleShardingPlan] = {}
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingBagCollection):
            names = [config.name for config in module.embedding_bag_configs()]
        elif isinstance(module, EmbeddingCollection):
            names = [config.name for config in module.embedding_configs()]
        else:
            continue
        found[path] = EmbeddingModuleShardingPlan({name: _parameter(planned[name], plan, device) for name in names})
    return ShardingPlan(found)  # type: ignore[arg-type]


def _parameter(table: PlannedTable, plan: PlanFile, device: str) -> ParameterSharding:
    if table.type == "data_parallel":
        return ParameterSharding("data_parallel", "dense", list(range(plan.processes)))
    per_host = plan.processes_per_host
    ranks = list(range(plan.processes)) if table.type == "row_wise" else table.ranks
    if table.type in HOST_BASED:
        ranks = [rank for first in table.ranks for rank in range(first, first + per_host)]
    shape = torch.empty(table.rows, table.dim, device="meta")
    sizes, offsets = calculate_shard_sizes_and_offsets(
        shape, plan.processes, per_host, table.type, table.dim // table.columns
    )
    shards = [
        ShardMetadata(shard_offsets=offset, shard_sizes=size, placement=placement(device, rank, per_host))
        for offset, size, rank in zip(offsets, sizes, ranks, strict=True)
    ]
    return ParameterSharding(table.type, "fused", ranks, EnumerableShardingSpec(shards))
