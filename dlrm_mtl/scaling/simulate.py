"""A training step of some processes of many, run for real on this one: their shards, their ids, their collectives.

Process r of W is built as in a run: TorchRec's sharded module, DDP, the optimizers. What the other processes would send to it
is cut from the global batch in the order that the module's own exchange has, so ids reach its shards as in a run. Vectors and
gradients of others are repetitions of its own: no number of bytes, rows or operations depends on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.types import ShardingPlan

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.torchrec import compat
from dlrm_mtl.embeddings.torchrec.plan import Processes
from dlrm_mtl.embeddings.torchrec.shards import sharded_collections
from dlrm_mtl.scaling.record import CollectiveRecorder
from dlrm_mtl.scaling.simulate_exchange import Received
from dlrm_mtl.scaling.simulate_group import answered_by, simulated_processes
from dlrm_mtl.scaling.simulate_memory import UntouchedMemory
from dlrm_mtl.scaling.simulate_rows import FLOAT, empty, part_of
from dlrm_mtl.scaling.work import Collective
from dlrm_mtl.training.build import build_model, build_optimizers, build_step
from dlrm_mtl.training.sharded_model import ShardedModel

WARM_UP = 3
"""Steps without ids before the recorded one."""
FILLED = 64 << 20
"""Largest size in bytes of a process's tables that get initial weights; larger ones stay zero."""


@dataclass(frozen=True)
class SimulatedRank:
    """A step of one process."""

    rank: int
    collectives: tuple[Collective, ...]
    """Its collectives, in order."""
    rows_read: int
    """Rows that its lookups read."""
    row_bytes_read: int
    rows_updated: int
    """Rows of its shards that its update touched, without tables that every process has whole."""
    table_bytes: int
    """Weights of its shards."""
    state_bytes: int
    """State of the table optimizer for its shards."""
    kernels: int
    """Groups of tables that are looked up together."""
    seconds: float
    """Time that the simulation took."""


def simulate_rank(
    config: RunConfig,
    spec: DatasetSpec,
    plan: ShardingPlan,
    layout: Processes,
    rank: int,
    batches: Sequence[Batch],
) -> SimulatedRank:
    """Run a step of process ``rank``.

    Args:
        config: configuration of the run.
        spec: description of its data set.
        plan: placement of the tables, of :func:`~dlrm_mtl.embeddings.torchrec.plan.foresee_plan`.
        layout: the processes.
        rank: number of the process.
        batches: global batch of the step, in micro-batches.

    Raises:
        UserError: the configuration has unbounded ids, whose rows depend on all earlier steps.
    """
    if config.data.unbounded:
        raise UserError(
            "data.unbounded: a simulation has no unbounded ids, as their rows depend on all earlier steps; remove the key, and "
            "let model tables have as many rows."
        )
    started = time.perf_counter()
    world = layout.world_size
    with simulated_processes(rank, world, layout.per_host):
        process = Process(rank, world, torch.device("cpu"))
        with UntouchedMemory():
            model = build_model(config, spec, process, plan=plan, initial=_weights(plan, rank) <= FILLED)
            optimizers = build_optimizers(config, model, total_steps=WARM_UP + 1)
            step = build_step(config, process, model, optimizers)
            touched = optimizers.sparse.mark_touched()
        # After two backward passes and one more forward pass, DDP has agreed on its buckets, as in all later steps.
        first = empty(batches[0], config.data.lanes)
        for number in range(WARM_UP):
            with answered_by(Received(model, plan, layout, rank, [first]).answer):
                step([part_of(first, rank, world)], number, 0)
        received = Received(model, plan, layout, rank, batches)
        reads = _count_reads(model)
        recorder = CollectiveRecorder(layout.per_host)
        with answered_by(received.answer), recorder:
            _, report = step([part_of(batch, rank, world) for batch in batches], WARM_UP, 0)
        assert not report.skipped, f"gradients of {report.non_finite} are not finite"
        tables = optimizers.sparse.tables
        return SimulatedRank(
            rank=rank,
            collectives=tuple(recorder.collectives),
            rows_read=reads.rows,
            row_bytes_read=reads.bytes,
            rows_updated=sum(len(changed.rows) for changed in touched.changed(replicated=False)),
            table_bytes=sum(local.group.weights.numel() for local in tables) * FLOAT,
            state_bytes=sum(state.numel() for local in tables for state in local.states.values()) * FLOAT,
            kernels=len(tables),
            seconds=time.perf_counter() - started,
        )


@dataclass
class _Reads:
    """Rows that lookups have read, and their bytes."""

    rows: int = 0
    bytes: int = 0


def _count_reads(model: ShardedModel) -> _Reads:
    """Count the rows that the local lookups read from now on."""
    reads = _Reads()

    def counter(widths: Tensor) -> Callable[..., None]:
        def count(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            offsets = options["offsets"]
            bags = (len(offsets) - 1) // len(widths)
            rows = offsets[:: max(bags, 1)].diff()
            reads.rows += int(rows.sum())
            reads.bytes += int((rows * widths).sum()) * FLOAT

        return count

    for collection in sharded_collections(model.module).values():
        for kernel in compat.kernels_of(compat.lookups_of(collection)):
            widths = [each.local_cols for each in compat.table_configs(kernel) for _ in range(each.num_features())]
            compat.tables_of(kernel).register_forward_pre_hook(counter(torch.tensor(widths)), with_kwargs=True)
    return reads


def _weights(plan: ShardingPlan, rank: int) -> int:
    """Bytes of the weights of process ``rank``, tables that every process holds whole left out."""
    size = 0
    for module in plan.plan.values():
        for sharding in module.values():  # type: ignore[attr-defined]
            for shard in sharding.sharding_spec.shards if sharding.sharding_spec else ():
                if shard.placement.rank() == rank:
                    size += shard.shard_sizes[0] * shard.shard_sizes[1] * FLOAT
    return size
