"""The plan of a run on a cluster before anything is allocated: placement, work of every process, expected time of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrm_mtl.config.check import check_tasks
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import size_text
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.order import own_lanes
from dlrm_mtl.embeddings.config import ShardingConfig
from dlrm_mtl.embeddings.tables import EmbeddingTable
from dlrm_mtl.embeddings.torchrec.lookups import ROWS_SPLIT
from dlrm_mtl.embeddings.torchrec.plan import (
    COLUMN_SPLITTING,
    HOST_BASED,
    RESERVED,
    Processes,
    Room,
    check_names,
    checked_choice,
    column_shards,
    describe_plan,
    effective_type,
    foresee_plan,
    layout_of,
)
from dlrm_mtl.embeddings.torchrec.plan_file import PlanFile, PlannedTable, read_plan
from dlrm_mtl.embeddings.torchrec.sharders import UnpooledSharder
from dlrm_mtl.run.plan import ID_BYTES
from dlrm_mtl.scaling.cost import StepTime, step_time
from dlrm_mtl.scaling.hardware import Hardware, Precision
from dlrm_mtl.scaling.load import load_of
from dlrm_mtl.scaling.options import KINDS, Cut, possible_cuts
from dlrm_mtl.scaling.placement import Placed, Placement, cut, placement_of
from dlrm_mtl.scaling.planner import NoRoomError, plan_tables
from dlrm_mtl.scaling.rank_work import rank_works
from dlrm_mtl.scaling.statistics import sample_ids
from dlrm_mtl.scaling.tables import Load
from dlrm_mtl.scaling.work import RankWork
from dlrm_mtl.training.build import build_ranker, quieten

PRECISIONS: dict[str, Precision] = {"highest": "float32", "high": "tf32", "medium": "bfloat16"}
"""Precision of products by PyTorch's name of it."""


@dataclass(frozen=True)
class ClusterPlan:
    """A plan, and what it would cost."""

    hardware: Hardware
    layout: Processes
    planner: str
    """`cost`, `torchrec`, or the file that the plan is from."""
    tables: Sequence[EmbeddingTable]
    load: Load
    placement: Placement
    works: Sequence[RankWork]
    time: StepTime
    precision: Precision
    room: int
    """Bytes of a process, on the device of its tables."""
    fixed: int
    """Bytes of each process that no placement changes: the dense part, and maps of unbounded ids."""
    sampled: bool
    """True if the lookups are those of the data set."""

    @property
    def held(self) -> list[int]:
        """Bytes that each process holds."""
        return [work.table_bytes + work.state_bytes + self.fixed for work in self.works]

    @property
    def rows_per_second(self) -> float:
        """Rows of the global batch by time."""
        return self.load.rows / self.time.total

    def file(self) -> PlanFile:
        """The plan as the content of a file."""
        tables = []
        for table in self.tables:
            placed = self.placement[table.name]
            columns = len({offset[1] for offset in placed.offsets}) if placed.type in COLUMN_SPLITTING else 1
            ranks = [] if placed.type in ("row_wise", "data_parallel") else list(placed.ranks)
            if placed.type in HOST_BASED:
                ranks = ranks[:: self.layout.per_host]
            tables.append(
                PlannedTable(
                    table=table.name,
                    rows=table.num_embeddings,
                    dim=table.embedding_dim,
                    type=placed.type,  # type: ignore[arg-type]
                    columns=columns,
                    ranks=ranks,
                )
            )
        return PlanFile(processes=self.layout.world_size, processes_per_host=self.layout.per_host, tables=tables)


def plan_cluster(
    config: RunConfig,
    dataset: Dataset,
    hardware: Hardware,
    processes: int,
    hosts: int,
    planner: str,
    room: Room,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClusterPlan:
    """Plan a run on ``processes`` processes of ``hardware``, spread evenly over ``hosts`` hosts.

    Args:
        config: configuration of the run.
        dataset: its data set.
        hardware: figures of a host and its network.
        processes: number of all processes.
        hosts: number of hosts.
        planner: `cost`, `torchrec`, or `file` for the plan in `sharding.plan`.
        room: memory of the hosts.
        progress: called with the numbers of done and of all units of work.

    Raises:
        UserError: the configuration does not fit the data set, the processes or the memory.
    """
    check_tasks(config, dataset.spec)
    if processes % hosts:
        raise UserError(
            f"--hosts {hosts}: does not divide {processes} processes; every host has the same number of them."
        )
    own_lanes(config.data.lanes, 0, processes)
    layout = layout_of(config.sharding, processes, processes // hosts)
    quieten()
    ranker, spec = build_ranker(config, dataset.spec)
    tables = ranker.lookup.table_set
    check_names(tables.configs, config.sharding)
    sample = sample_ids(config, dataset, tables)
    load = load_of(config, spec, ranker, sample)
    ids = sum(unbounded.rows for unbounded in config.data.unbounded.values()) * ID_BYTES // processes
    fixed = load.dense.held_bytes + ids
    source, whole = planner, room.of_process(layout)
    if planner == "file":
        source = str(config.sharding.plan)
        placement = _placement_in(read_plan(Path(source), tables.configs, layout))
    elif planner == "torchrec":
        plan = foresee_plan(ranker, tables.configs, config.sharding, layout, room, config.data.training_rows)
        placement = placement_of(describe_plan(plan, tables.configs, config.optimizer.sparse.states, processes))
    else:
        cuts = {table.name: cuts_of(table, load, config.sharding, layout) for table in tables.configs}
        free = int((1 - RESERVED) * whole) - fixed
        try:
            placement = plan_tables(hardware, load, cuts, processes, layout.per_host, free, progress)
        except NoRoomError as error:
            raise _no_room(error, cuts[error.table], hardware, layout, whole, fixed) from None
    works = rank_works(load, placement, processes, layout.per_host)
    precision = PRECISIONS[config.training.matmul_precision]
    time = step_time(hardware, works, layout.hosts, precision)
    return ClusterPlan(
        hardware,
        layout,
        source,
        tables.configs,
        load,
        placement,
        works,
        time,
        precision,
        whole,
        fixed,
        sample is not None,
    )


def cuts_of(table: EmbeddingTable, load: Load, sharding: ShardingConfig, layout: Processes) -> list[Cut]:
    """Ways to cut a table that the configuration allows; with `auto`, all.

    Raises:
        UserError: the sharding does not fit the table.
    """
    place, choice = checked_choice(table, sharding)
    own = load.by_name[table.name]
    if choice.type != "auto":
        kind = effective_type(choice.type, layout)
        return [Cut(kind, column_shards(table, choice, layout, place) if kind in COLUMN_SPLITTING else 1)]
    kinds: tuple[str, ...] = KINDS
    if not table.pooled:  # TorchRec's exchange of unpooled rows needs shards of one width
        kinds = tuple(
            kind for kind in KINDS if kind in UnpooledSharder().sharding_types("cpu") and kind != "column_wise"
        )
    return possible_cuts(own, layout.world_size, layout.per_host, kinds)


def _placement_in(plan: PlanFile) -> dict[str, Placed]:
    everywhere = range(plan.processes)
    return {
        table.table: cut(
            table.type,
            table.rows,
            table.dim,
            everywhere if table.type == "row_wise" else table.ranks,
            table.columns,
            plan.processes_per_host,
        )
        for table in plan.tables
    }


def _no_room(
    error: NoRoomError, cuts: Sequence[Cut], hardware: Hardware, layout: Processes, whole: int, fixed: int
) -> UserError:
    missing = size_text(max(round(error.needed - error.free), 1))
    kinds = sorted({each.type for each in cuts})
    wanted = max(layout.world_size + 1, -(-round(error.total) // max(round(error.room), 1)))
    hosts = -(-wanted // layout.per_host)
    if not set(kinds) & ROWS_SPLIT:
        remedy = f"let its rows be cut (sharding.tables.{error.table}: row_wise)"
    else:
        remedy = f"use more processes (at least {hosts * layout.per_host}, {hosts} host(s) of {hardware.name})"
    return UserError(
        f"sharding: table {error.table} ({', '.join(kinds)}) needs {size_text(round(error.needed))} of one process, and the "
        f"emptiest of {layout.world_size} has {size_text(max(round(error.free), 0))} left: {missing} are missing; of "
        f"{size_text(whole)}, {size_text(round(error.room))} are for tables ({RESERVED:.0%} are for batches, "
        f"{size_text(fixed)} for the dense part), and all tables with their state hold {size_text(round(error.total))}; "
        f"{remedy}, smaller tables or more memory."
    )
