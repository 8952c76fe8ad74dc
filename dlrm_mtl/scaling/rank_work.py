"""The work of every process under a placement: rows, bytes of memory, and what TorchRec 1.8 sends.

With W processes, P on each of H hosts, a micro-batch of G rows on all and B = G / W on one, tables of one collection and type
share their collectives. A shard's features each have a length for every row (int32), and ids (int64); its output has D
columns for each feature (float32). Bytes of one process and micro-batch:

    =====================================  ========  ===================================  ==========================
    collective                             kind      sent                                 received
    =====================================  ========  ===================================  ==========================
    split sizes of lengths, ids, rows      a2a       24 W                                 24 W
    lengths                                a2a       4 B x features of all shards         4 G x features of own
    ids                                    a2a       8 x own rows' ids, for each column   8 x ids in own shards
                                                     shard
    pooled: table_wise, column_wise,       a2a       4 G x own D                          4 B x all D
    table_column_wise
    pooled: row_wise                       rs        4 G x all D                          4 B x all D
    pooled: table_row_wise, grid_shard     rs, host  4 G x D of the host                  4 G / P x D of the host
    then                                   a2a, h.   4 G / P x D of the host              4 B x all D
    unpooled, any type                     a2a       4 x ids in own shards x columns      4 x own rows' ids x columns
    =====================================  ========  ===================================  ==========================

Backward returns gradients the other way; the opposite of a reduce-scatter is an all-gather. Row shards count as many features
on each of their processes, so lengths are sent once for every one of them. Once a step come: the sums of weights (4 (tasks +
1)), the all-reduce of factors (4 (tables + 2)), and 4 bytes for each touched row of column shards on several processes, for
each number that they exchange. DDP's gradients of the dense part and of replicated tables are summed for every micro-batch.
Numbers of ids are expectations, rounded; all others are exact. Not counted: exchanges of unbounded ids, of gradient
balancing, and of ranking losses.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.embeddings.torchrec.lookups import ROWS_SPLIT
from dlrm_mtl.embeddings.torchrec.plan import COLUMN_SPLITTING, HOST_BASED
from dlrm_mtl.scaling.placement import Placed, Placement, row_edges
from dlrm_mtl.scaling.tables import FLOAT, Load, TableLoad
from dlrm_mtl.scaling.work import Collective, Kind, Phase, RankWork, Span

ID = 8
"""Bytes of an id, and of a split size."""
LENGTH = 4
"""Bytes of a length."""
FACTORS = 2
"""Numbers of the step's all-reduce beside one factor for each table: the dense part's, and a flag."""

Array = NDArray[np.float64]


@dataclass
class _Group:
    """Tables of one collection and sharding type, which share their collectives."""

    kind: str
    pooled: bool
    features: Array
    """[W] features of the shards of each process."""
    lookups: Array
    """[W] ids of a micro-batch in the shards of each process."""
    outputs: Array
    """[W] columns of output of each process: for every feature, those of its shards."""
    vectors: Array
    """[W] numbers of unpooled output of a micro-batch: ids times columns."""
    sent_ids: float = 0.0
    """Ids that a process sends in a micro-batch."""
    sent_vectors: float = 0.0
    """Numbers of unpooled output that a process gets back."""


@dataclass
class _Team:
    """Processes that hold columns of the same rows, and numbers that they exchange."""

    numbers: float = field(default=0.0)


def rank_works(load: Load, placement: Placement, world_size: int, per_host: int) -> list[RankWork]:
    """Work of every process, by rank.

    Args:
        load: what a step does.
        placement: where the tables are.
        world_size: number of processes.
        per_host: number of processes of a host.
    """
    rows = load.rows // load.micro_batches
    held = _Held(world_size)
    groups: dict[tuple[str, bool], _Group] = {}
    teams: dict[tuple[int, ...], _Team] = defaultdict(_Team)
    replicated = 0
    for table in load.tables:
        placed = placement[table.name]
        if placed.type == "data_parallel":
            held.replicate(load, table, world_size)
            replicated += table.weight_bytes
            continue
        key = placed.type, table.pooled
        if key not in groups:
            groups[key] = _Group(placed.type, table.pooled, *np.zeros((4, world_size)))
        _place(load, table, placed, rows, groups[key], held, teams)
    shared = _collectives_of_all(load, replicated)
    of_teams = _of_teams(load, teams, world_size, per_host)
    of_groups = [_collectives(group, rows, world_size, per_host) for group in groups.values()] if world_size > 1 else []
    kernels = np.zeros(world_size, dtype=np.int64)
    for group in groups.values():
        kernels += group.features > 0
    kernels += replicated > 0
    works = []
    for rank in range(world_size):
        own = tuple(each for of_group in of_groups for each in of_group[rank]) * load.micro_batches
        works.append(
            RankWork(
                rows_read=round(held.reads[rank]),
                row_bytes_read=round(held.read_bytes[rank]),
                rows_updated=round(held.updates[rank]),
                row_bytes_updated=round(held.update_bytes[rank]),
                dense_flops=load.dense.flops * load.rows // world_size,
                dense_bytes=3 * load.dense.held_bytes,
                table_bytes=round(held.tables[rank]),
                state_bytes=round(held.states[rank]),
                collectives=own + shared + tuple(of_teams[rank]),
                kernels=int(kernels[rank]),
                tables=len(load.tables),
                feature_bytes=round(load.rows / world_size * load.row_width * FLOAT),
                gradient_bytes_made=replicated * load.micro_batches,
                gradient_bytes_searched=replicated,
            )
        )
    return works


class _Held:
    """Sums over the shards of each process, [W] each."""

    def __init__(self, world_size: int) -> None:
        self.reads, self.read_bytes, self.updates, self.update_bytes, self.tables, self.states = (
            np.zeros(world_size) for _ in range(6)
        )

    def replicate(self, load: Load, table: TableLoad, world_size: int) -> None:
        """Count a table that every process has."""
        lookups = table.ids * load.rows
        distinct = table.popularity.distinct(lookups)
        self.reads += lookups / world_size
        self.read_bytes += lookups / world_size * table.dim * FLOAT
        self.updates += distinct
        self.update_bytes += distinct * load.state.row_bytes(table.dim)
        self.tables += table.weight_bytes
        self.states += load.state.held(table.rows, table.dim, kept=0) + table.weight_bytes


def _place(
    load: Load,
    table: TableLoad,
    placed: Placed,
    rows: int,
    group: _Group,
    held: _Held,
    teams: dict[tuple[int, ...], _Team],
) -> None:
    """Add the shards of a table to the sums of its group and of its processes."""
    ranks, sizes = np.array(placed.ranks), np.array(placed.sizes, dtype=np.int64)
    offsets = np.array(placed.offsets, dtype=np.int64)
    columns = 1
    edges = np.array([0, table.rows], dtype=np.int64)
    if group.kind in ROWS_SPLIT:
        parts = int((offsets[:, 1] == offsets[0, 1]).sum())
        columns, edges = len(ranks) // parts, row_edges(table.rows, parts)
    elif group.kind in COLUMN_SPLITTING:
        columns = len(ranks)
    lookups, distinct = table.popularity.between(table.ids * load.rows, edges)
    lookups, distinct = np.tile(lookups, columns), np.tile(distinct, columns)
    share = rows / load.rows
    width, total = sizes[:, 1], table.features
    for target, values in (
        (held.reads, lookups),
        (held.read_bytes, lookups * width * FLOAT),
        (held.updates, distinct),
        (held.update_bytes, distinct * load.state.row_bytes(width)),
        (held.tables, sizes[:, 0] * width * FLOAT),
        (held.states, load.state.held(sizes[:, 0], width)),
        (group.features, np.full(len(ranks), total)),
        (group.lookups, lookups * share),
        (group.outputs, width * total),
        (group.vectors, lookups * share * width),
    ):
        np.add.at(target, ranks, values)
    own = table.ids * rows / len(group.features)
    group.sent_ids += own * columns
    group.sent_vectors += own * table.dim
    if placed.type in COLUMN_SPLITTING and columns > 1:
        per_column = len(ranks) // columns
        for block in range(per_column):
            members = tuple(sorted(set(ranks[block::per_column].tolist())))
            if len(members) > 1:
                teams[members].numbers += float(distinct[block])


def _collectives(group: _Group, rows: int, world_size: int, per_host: int) -> list[list[Collective]]:
    """Collectives of a group in one micro-batch, for each process."""
    own_rows, hosts = rows // world_size, world_size // per_host
    splits = 3 * ID * world_size
    lengths = round(group.features.sum()) * own_rows * LENGTH
    ids = round(group.sent_ids * ID)
    result = []
    for rank in range(world_size):
        found = [
            Collective("all_to_all", "ids", "world", splits, splits),
            Collective("all_to_all", "ids", "world", lengths, round(group.features[rank]) * rows * LENGTH),
            Collective("all_to_all", "ids", "world", ids, round(group.lookups[rank] * ID)),
        ]
        steps: list[tuple[Kind, Span, int, int]]
        if not group.pooled:
            steps = [("all_to_all", "world", round(group.vectors[rank] * FLOAT), round(group.sent_vectors * FLOAT))]
        elif group.kind == "row_wise":
            size = round(group.outputs[rank]) * FLOAT
            steps = [("reduce_scatter", "world", rows * size, own_rows * size)]
        elif group.kind in HOST_BASED:
            size, all_ = round(group.outputs[rank]) * FLOAT, round(group.outputs[::per_host].sum()) * FLOAT
            steps = [
                ("reduce_scatter", "host", rows * size, hosts * own_rows * size),
                ("all_to_all", "across_hosts", hosts * own_rows * size, own_rows * all_),
            ]
            steps = [step for step, size_ in zip(steps, (per_host, hosts), strict=True) if size_ > 1]
        else:
            size, all_ = round(group.outputs[rank]) * FLOAT, round(group.outputs.sum()) * FLOAT
            steps = [("all_to_all", "world", rows * size, own_rows * all_)]
        found += [Collective(kind, "pooled", span, sent, received) for kind, span, sent, received in steps]
        for kind, span, sent, received in reversed(steps):
            back: Kind = "all_gather" if kind == "reduce_scatter" else kind
            found.append(Collective(back, "gradients", span, received, sent))
        result.append(found)
    return result


def _collectives_of_all(load: Load, replicated: int) -> tuple[Collective, ...]:
    """Collectives in which every process takes part with the same bytes, in one step."""
    found = []
    phases: list[tuple[Phase, int, int]] = [
        ("dense", load.dense.parameter_bytes, load.micro_batches),
        ("dense", replicated, load.micro_batches),
        ("step", (load.dense.tasks + 1) * FLOAT, 1),
        ("step", (len(load.tables) + FACTORS) * FLOAT, 1),
    ]
    for phase, size, times in phases:
        if size:
            found += [Collective("all_reduce", phase, "world", size, size)] * times
    return tuple(found)


def _of_teams(
    load: Load, teams: dict[tuple[int, ...], _Team], world_size: int, per_host: int
) -> list[list[Collective]]:
    """All-reduces over processes with columns of the same rows, for each process."""
    result: list[list[Collective]] = [[] for _ in range(world_size)]
    for members, team in teams.items():
        size = round(team.numbers) * FLOAT
        hosts = {rank // per_host for rank in members}
        span: Span = "host" if len(hosts) == 1 else "across_hosts" if len(hosts) == len(members) else "world"
        for rank in members:
            result[rank] += [Collective("all_reduce", "step", span, size, size)] * load.row_reductions
    return result
