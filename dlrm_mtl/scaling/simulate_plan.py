"""Placement of a run's tables for a simulation, which asks TorchRec's planner only where there is a choice."""

from __future__ import annotations

from torchrec.distributed.sharding_plan import construct_module_sharding_plan, data_parallel, row_wise
from torchrec.distributed.types import ShardingPlan

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.embeddings.config import TableSharding
from dlrm_mtl.embeddings.torchrec.compat import ShardMetadata
from dlrm_mtl.embeddings.torchrec.plan import Processes, Room, effective_type, foresee_plan
from dlrm_mtl.embeddings.torchrec.sharders import PooledSharder, UnpooledSharder
from dlrm_mtl.models.base import RankingModel

WITHOUT_CHOICE = {"row_wise": lambda: row_wise(compute_kernel="fused"), "data_parallel": data_parallel}
"""Types whose shards have no choice of processes; the planner would take a millisecond for each shard."""


def simulated_plan(config: RunConfig, ranker: RankingModel, layout: Processes, room: Room) -> ShardingPlan:
    """The plan that a run would make, with all shards on the CPU.

    Args:
        config: configuration of the run.
        ranker: its model before sharding.
        layout: its processes.
        room: memory of its hosts.

    Raises:
        UserError: the sharding does not fit the tables, the processes or the memory.
    """
    tables, sharding = ranker.lookup.table_set.configs, config.sharding
    choices = {table.name: sharding.tables.get(table.name, TableSharding(type=sharding.default)) for table in tables}
    types = {name: effective_type(choice.type, layout) for name, choice in choices.items()}
    without_choice = all(kind in WITHOUT_CHOICE for kind in types.values())
    if (
        not without_choice
        or set(sharding.tables) - set(choices)
        or any(each.column_shards for each in choices.values())
    ):
        planned = foresee_plan(ranker, tables, sharding, layout, room, config.data.training_rows)
        _move_to_cpu(planned)
        return planned
    plan = ShardingPlan({})
    for path, module in ranker.named_modules():
        sharder = next(
            (each for each in (PooledSharder(), UnpooledSharder()) if type(module) is each.module_type), None
        )
        if sharder is None:
            continue
        own = {name: WITHOUT_CHOICE[types[name]]() for name in sharder.shardable_parameters(module)}
        plan.plan[path] = construct_module_sharding_plan(
            module, own, sharder, layout.per_host, layout.world_size, "cpu"
        )
    return plan


def _move_to_cpu(plan: ShardingPlan) -> None:
    for module in plan.plan.values():
        for table in module.values():  # type: ignore[attr-defined]
            for shard in table.sharding_spec.shards if table.sharding_spec else ():
                on_cpu = ShardMetadata(shard.shard_offsets, shard.shard_sizes, f"rank:{shard.placement.rank()}/cpu")
                shard.placement = on_cpu.placement
