"""A run's step simulated for several numbers of processes and sharding types: bytes, rows, memory, balance, time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.order import own_lanes
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.config import ShardingConfig, TableSharding
from dlrm_mtl.embeddings.torchrec.plan import HOST_BASED, Processes, Room, describe_plan, layout_of
from dlrm_mtl.embeddings.torchrec.sharders import SHARDING_TYPES, UnpooledSharder
from dlrm_mtl.models.base import RankingModel
from dlrm_mtl.models.feature_lookup import most_recent
from dlrm_mtl.scaling.cost import StepTime, step_time
from dlrm_mtl.scaling.hardware import Hardware, Precision
from dlrm_mtl.scaling.load import load_of
from dlrm_mtl.scaling.placement import placement_of
from dlrm_mtl.scaling.rank_work import rank_works
from dlrm_mtl.scaling.simulate import SimulatedRank, simulate_rank
from dlrm_mtl.scaling.simulate_plan import simulated_plan
from dlrm_mtl.scaling.simulate_rows import RowCounts, count_rows
from dlrm_mtl.scaling.work import PHASES, Phase, RankWork
from dlrm_mtl.training.build import build_ranker, quieten

CONFIGURED = "as configured"
"""Name of the sharding that the configuration itself has."""
LARGEST_COPY = 2 << 30
"""Largest size in bytes of data-parallel tables that are built: their gradients are dense, so they take real memory."""

Report = Callable[[str], None]
"""Called with what is being simulated."""


@dataclass(frozen=True)
class TypeResult:
    """A sharding of all tables on so many processes."""

    sharding: str
    layout: Processes
    works: list[RankWork]
    """Work of every process. Collectives of processes that were not simulated are those of
    :func:`~dlrm_mtl.scaling.rank_work.rank_works`; their numbers of rows are counted."""
    simulated: list[SimulatedRank]
    """Processes whose step was run."""
    counts: RowCounts
    time: StepTime
    held: list[int]
    """Bytes of tables, their state and the dense part of each process."""
    room: int
    """Bytes of memory of a process."""

    @property
    def fits(self) -> bool:
        """True if the fullest process has memory enough."""
        return max(self.held) <= self.room

    @property
    def busiest(self) -> RankWork:
        """Work of the process that sends and receives most."""
        return max(self.works, key=lambda work: sum(each.sent + each.received for each in work.collectives))

    def sent(self, phase: Phase) -> int:
        """Largest number of bytes that a process sends in ``phase``."""
        return max(work.bytes_of(phase)[0] for work in self.works)

    def received(self, phase: Phase) -> int:
        """Largest number of bytes that a process receives in ``phase``."""
        return max(work.bytes_of(phase)[1] for work in self.works)

    def imbalance(self, quantity: str) -> float:
        """Largest over mean of ``rows`` (read), ``updates``, ``memory`` or ``bytes`` (sent and received)."""
        values = {
            "rows": self.counts.read,
            "updates": self.counts.updated,
            "memory": np.array(self.held),
            "bytes": np.array([sum(sum(work.bytes_of(phase)) for phase in PHASES) for work in self.works]),
        }[quantity]
        return float(values.max() / values.mean()) if values.sum() else 1.0


def check_types(names: Sequence[str]) -> None:
    """Refuse unknown sharding types.

    Raises:
        UserError: a name is no sharding type.
    """
    for name in names:
        if name not in SHARDING_TYPES:
            raise UserError(f"--sharding {name}: there is no such sharding type; {suggest(name, SHARDING_TYPES)}.")


def layout_for(config: RunConfig, world: int, per_host: int) -> Processes:
    """The processes, ``per_host`` on each host or all on one.

    Raises:
        UserError: they do not divide the hosts, or the lanes do not divide them.
    """
    own_lanes(config.data.lanes, 0, world)
    if world > per_host and world % per_host:
        raise UserError(
            f"--world-size {world}: is no multiple of the {per_host} processes of a host; choose one, or set --per-host."
        )
    return layout_of(config.sharding, world, min(world, per_host))


def simulate_type(
    config: RunConfig,
    spec: DatasetSpec,
    layout: Processes,
    hardware: Hardware,
    batches: Sequence[Batch],
    sharding: str = CONFIGURED,
    report: Report = lambda text: None,
    extremes: bool = True,
) -> TypeResult:
    """Simulate a step with all tables under one sharding type.

    Three processes are run: the first, and those whose lookups read the most and the fewest bytes.

    Args:
        config: configuration of the run.
        spec: description of its data set.
        layout: the processes.
        hardware: what they run on.
        batches: global batch of a step, in micro-batches.
        sharding: the type, or :data:`CONFIGURED`.
        report: called before each process is run.
        extremes: False to run the first process only.

    Raises:
        UserError: the type does not fit the tables, the processes or the memory.
    """
    quieten()
    ranker, known = build_ranker(config, spec)
    if sharding != CONFIGURED:
        config = config.model_copy(update={"sharding": all_tables(sharding, ranker, layout)})
    room = Room(hardware.memory_per_host, hardware.memory_per_process if hardware.device == "cuda" else None)
    report("plan")
    plan = simulated_plan(config, ranker, layout, room)
    tables, states = ranker.lookup.table_set, config.optimizer.sparse.states
    world = layout.world_size
    described = describe_plan(plan, tables.configs, states, world)
    ids = [ranker.ids(batch) for batch in batches]
    counts = count_rows(ids, tables, described, states, world)
    recent = [most_recent(each, each.keys(), tables.lengths) for each in ids]
    sample = {
        name: (np.concatenate([each[name].values().numpy() for each in recent]), sum(each.stride() for each in recent))
        for name in recent[0].keys()  # noqa: SIM118  (a KeyedJaggedTensor)
    }
    works = rank_works(load_of(config, known, ranker, sample), placement_of(described), world, layout.per_host)
    works = [
        replace(
            work,
            rows_read=int(counts.read[rank]),
            row_bytes_read=int(counts.bytes_read[rank]),
            rows_updated=int(counts.updated[rank]),
            row_bytes_updated=int(counts.bytes_updated[rank]),
        )
        for rank, work in enumerate(works)
    ]
    simulated = []
    replicated = sum(table["mib"] for table in described if not table["shards"]) * 2**20
    if replicated <= LARGEST_COPY:
        others = {int(counts.bytes_read.argmax()), int(counts.bytes_read.argmin())} if extremes else set()
        for rank in sorted({0} | others):
            report(f"process {rank}")
            simulated.append(simulate_rank(config, spec, plan, layout, rank, batches))
            works[rank] = replace(works[rank], collectives=simulated[-1].collectives)
    precision: Precision = "float32"
    if hardware.device == "cuda" and config.training.matmul_precision != "highest":
        precision = "tf32"
    dense = load_of(config, known, ranker, None).dense.held_bytes
    return TypeResult(
        sharding=sharding,
        layout=layout,
        works=works,
        simulated=simulated,
        counts=counts,
        time=step_time(hardware, works, layout.hosts, precision),
        held=[work.table_bytes + work.state_bytes + dense for work in works],
        room=hardware.memory_per_process,
    )


def all_tables(kind: str, ranker: RankingModel, layout: Processes) -> ShardingConfig:
    """Sharding of all tables by ``kind``; unpooled tables that it cannot hold are row_wise.

    Raises:
        UserError: the type divides tables over the processes of several hosts, and there is one.
    """
    if kind in HOST_BASED and layout.hosts == 1:
        raise UserError(f"{kind}: is row_wise on a single host.")
    possible = UnpooledSharder().sharding_types("cpu")
    others = {} if kind in possible else {table.name: "row_wise" for table in ranker.lookup.table_set.unpooled}
    tables = {name: TableSharding(type="row_wise") for name in others}
    return ShardingConfig(default=kind, tables=tables, processes_per_host=layout.per_host)  # type: ignore[arg-type]
