"""The planner against every possible placement of small cases, against TorchRec's planner, and on its own invariants."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology

from dlrm_mtl.embeddings.rules.rowwise_adagrad import RowWiseAdagrad
from dlrm_mtl.embeddings.tables import EmbeddingTable
from dlrm_mtl.embeddings.torchrec.plan import describe_plan
from dlrm_mtl.embeddings.torchrec.sharders import PooledSharder
from dlrm_mtl.scaling.cost import step_time
from dlrm_mtl.scaling.hardware import Hardware, load_hardware
from dlrm_mtl.scaling.options import KINDS, Cut, possible_cuts
from dlrm_mtl.scaling.placement import Placed, Placement, cut, placement_of
from dlrm_mtl.scaling.planner import NoRoomError, plan_tables
from dlrm_mtl.scaling.rank_work import rank_works
from dlrm_mtl.scaling.tables import DenseLoad, Load, Popularity, StateSize, TableLoad

DENSE = DenseLoad(parameter_bytes=10**6, flops=10**6, held_bytes=4 * 10**6, tasks=2)
ROOM = 1e10


def random_load(seed: int, tables: int) -> Load:
    """Tables of 100 to ten million rows, some of them read much more often than others."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(tables):
        rows = int(10 ** rng.uniform(2, 7))
        popularity = Popularity.uniform(rows)
        if rng.random() < 0.5:
            popularity = Popularity.of_sample((rows * rng.random(5000) ** 3).astype(np.int64), rows)
        made.append(
            TableLoad(
                f"t{number}", rows, int(rng.choice([8, 16, 64, 128])), 1, float(rng.choice([1, 1, 4, 30])), popularity
            )
        )
    return Load(made, DENSE, StateSize(1, 0), rows=int(rng.choice([512, 4096, 32768])))


def all_cuts(load: Load, world_size: int, per_host: int) -> dict[str, list[Cut]]:
    return {table.name: possible_cuts(table, world_size, per_host) for table in load.tables}


def seconds(hardware: Hardware, load: Load, placement: Placement, world_size: int, per_host: int) -> float:
    return step_time(hardware, rank_works(load, placement, world_size, per_host), world_size // per_host).total


def places(table: TableLoad, each: Cut, world_size: int, per_host: int) -> Iterator[Placed]:
    """Every placement of a table under one cut."""
    firsts = range(0, world_size, per_host)
    if each.type in ("row_wise", "data_parallel"):
        targets = [tuple(range(world_size))]
    elif each.type in ("table_row_wise", "grid_shard"):
        targets = list(combinations(firsts, each.columns))
    elif each.type == "table_column_wise":
        targets = [ranks for first in firsts for ranks in combinations(range(first, first + per_host), each.columns)]
    else:
        targets = list(combinations(range(world_size), each.columns))
    for ranks in targets:
        yield cut(each.type, table.rows, table.dim, ranks, each.columns, per_host)


@pytest.mark.parametrize(("world_size", "per_host", "tables"), [(2, 2, 3), (4, 4, 2), (4, 2, 2)])
@pytest.mark.parametrize(
    "name", [pytest.param("cpu", marks=pytest.mark.slow), "h100x8", pytest.param("l4x8", marks=pytest.mark.slow)]
)
def test_against_every_placement(name: str, world_size: int, per_host: int, tables: int) -> None:
    hardware = load_hardware(name)
    gaps = []
    for seed in range(4):
        load = random_load(seed, tables)
        cuts = all_cuts(load, world_size, per_host)
        plan = plan_tables(hardware, load, cuts, world_size, per_host, ROOM)
        every = [
            [placed for each in cuts[table.name] for placed in places(table, each, world_size, per_host)]
            for table in load.tables
        ]
        names = [table.name for table in load.tables]
        best = min(
            seconds(hardware, load, dict(zip(names, chosen, strict=True)), world_size, per_host)
            for chosen in product(*every)
        )
        gaps.append(seconds(hardware, load, plan, world_size, per_host) / best - 1)
    assert min(gaps) > -1e-9
    assert max(gaps) < 0.05, gaps
    assert sum(gap < 1e-6 for gap in gaps) > len(gaps) / 2, gaps


def torchrec_plan(load: Load, world_size: int, per_host: int) -> Placement:
    """The plan of TorchRec's planner, which knows the same numbers of ids, and may choose any type."""
    configs = [EmbeddingTable(t.name, t.rows, t.dim, [f"f{t.name}"]) for t in load.tables]
    module = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=c.name,
                num_embeddings=c.num_embeddings,
                embedding_dim=c.embedding_dim,
                feature_names=c.feature_names,
            )
            for c in configs
        ],
    )
    topology = Topology(world_size=world_size, local_world_size=per_host, compute_device="cuda", hbm_cap=80 * 10**9)
    constraints = {
        t.name: ParameterConstraints(pooling_factors=[t.ids], sharding_types=list(KINDS), min_partition=4)
        for t in load.tables
    }
    planner = EmbeddingShardingPlanner(topology=topology, batch_size=load.rows // world_size, constraints=constraints)
    plan = planner.plan(module, [PooledSharder()])  # type: ignore[list-item]
    return placement_of(describe_plan(plan, configs, RowWiseAdagrad(learning_rate=0.1).states, world_size))


@pytest.mark.parametrize(("world_size", "per_host", "tables"), [(2, 2, 8), (4, 2, 12)])
def test_no_worse_than_torchrec(world_size: int, per_host: int, tables: int) -> None:
    hardware = load_hardware("h100x8")
    for seed in range(2):
        load = random_load(100 + seed, tables)
        ours = plan_tables(hardware, load, all_cuts(load, world_size, per_host), world_size, per_host, ROOM)
        theirs = torchrec_plan(load, world_size, per_host)
        limit = seconds(hardware, load, theirs, world_size, per_host)
        assert seconds(hardware, load, ours, world_size, per_host) <= limit * (1 + 1e-6)


def test_memory_is_kept_and_a_plan_is_whole() -> None:
    hardware = load_hardware("h100x8")
    for seed in range(5):
        load = random_load(seed, 12)
        total = sum(table.weight_bytes + table.rows * 4 for table in load.tables)
        room = total / 8 * 1.3
        plan = plan_tables(hardware, load, all_cuts(load, 8, 4), 8, 4, room)
        assert set(plan) == {table.name for table in load.tables}
        held = [work.table_bytes + work.state_bytes for work in rank_works(load, plan, 8, 4)]
        assert max(held) <= room
        for table in load.tables:
            placed = plan[table.name]
            if placed.type != "data_parallel":
                assert sum(rows * columns for rows, columns in placed.sizes) == table.rows * table.dim
        assert plan == plan_tables(hardware, load, all_cuts(load, 8, 4), 8, 4, room), "the same every time"


def test_no_room() -> None:
    table = TableLoad("big", 10**6, 64, 1, 1.0, Popularity.uniform(10**6))
    load = Load([table], DENSE, StateSize(1, 0), rows=512)
    hardware = load_hardware("h100x8")
    assert plan_tables(hardware, load, all_cuts(load, 4, 4), 4, 4, 70e6)["big"].type == "row_wise"
    with pytest.raises(NoRoomError) as error:
        plan_tables(hardware, load, all_cuts(load, 4, 4), 4, 4, 60e6)
    assert error.value.table == "big"
    assert error.value.needed == 250_000 * 65 * 4
    with pytest.raises(NoRoomError):
        plan_tables(hardware, load, {"big": [Cut("table_wise")]}, 4, 4, 200e6)
