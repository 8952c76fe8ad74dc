"""A simulated process against real ones: the same collectives, bytes and rows, for every sharding type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.distributed.types import ShardingPlan

from dlrm_mtl.config.load import load_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.embeddings.torchrec import compat
from dlrm_mtl.embeddings.torchrec.plan import Room, describe_plan, foresee_plan, layout_of
from dlrm_mtl.scaling.load import load_of
from dlrm_mtl.scaling.placement import placement_of
from dlrm_mtl.scaling.rank_work import rank_works
from dlrm_mtl.scaling.record import CollectiveRecorder
from dlrm_mtl.scaling.simulate import WARM_UP, simulate_rank
from dlrm_mtl.scaling.simulate_plan import simulated_plan
from dlrm_mtl.scaling.simulate_rows import count_rows, empty, part_of
from dlrm_mtl.scaling.work import Collective
from dlrm_mtl.training.build import build_model, build_optimizers, build_ranker, build_step
from dlrm_mtl.training.loaders import training_loader
from tests import commands, synthetic
from tests.processes import run_processes

TYPES = [
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]
SHARDINGS = {name: {"default": name} for name in TYPES} | {
    "mixture": {
        "default": "table_wise",
        "tables": {"user": "row_wise", "item": "column_wise", "tags": "data_parallel"},
    },
    "unpooled": {"default": "row_wise"},
}
ROOM = Room(8 << 30)


def changes(name: str, world: int, hosts: int) -> list[str]:
    """Overrides for the sharding ``name``."""
    sharding = SHARDINGS[name] | {"processes_per_host": world // hosts}
    flattened = ["model.embeddings.features.history={pooling: flattened, length: 3}"] if name == "unpooled" else []
    return [f"sharding={json.dumps(sharding)}", "data.lanes=8", "training.micro_batches=2", *flattened]


def first_step(config: RunConfig) -> list[Batch]:
    """The global batch of the first step, in micro-batches."""
    split = open_dataset(config.data.path).split("train")
    with training_loader(config, split, Process(0, 1, torch.device("cpu"))).epoch(0) as batches:
        return [batch for batch, _ in zip(batches, range(config.training.micro_batches), strict=False)]


def measured(rank: int, path: str, world: int, hosts: int, names: list[str]) -> dict[str, Any]:
    """Collectives of a step of this real process, and the rows that it updated, by sharding."""
    result = {}
    for name in names:
        config = load_config(Path(path), changes(name, world, hosts))
        dataset = open_dataset(config.data.path)
        process = Process(rank, world, torch.device("cpu"))
        model = build_model(config, dataset.spec, process)
        optimizers = build_optimizers(config, model, 1)
        step = build_step(config, process, model, optimizers)
        touched = optimizers.sparse.mark_touched()
        with training_loader(config, dataset.split("train"), process).epoch(0) as loader:
            batches = [batch for batch, _ in zip(loader, range(2), strict=False)]
        for number in range(WARM_UP):
            step([empty(batches[0], config.data.lanes // world)], number, 0)
        with CollectiveRecorder(world // hosts) as recorder:
            step(batches, WARM_UP, 0)
        result[name] = recorder.collectives, sum(len(each.rows) for each in touched.changed(replicated=False))
        compat.set_host_groups(None, None)
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=256)
    return commands.write_config(folder / "run.yaml", synthetic.config(folder))


@pytest.mark.parametrize(("world", "hosts"), [(2, 1), (4, 2), pytest.param(8, 2, marks=pytest.mark.slow)])
def test_a_simulated_process_is_a_real_one(run: Path, world: int, hosts: int) -> None:
    host_based = {"table_row_wise", "table_column_wise", "grid_shard"}
    names = [name for name in SHARDINGS if hosts > 1 or name not in host_based]
    real = run_processes(world, measured, str(run), world, hosts, names, timeout=600.0)
    for name in names:
        config = load_config(run, changes(name, world, hosts))
        spec = open_dataset(config.data.path).spec
        ranker, known = build_ranker(config, spec)
        tables, states = ranker.lookup.table_set, config.optimizer.sparse.states
        layout = layout_of(config.sharding, world, world // hosts)
        plan = simulated_plan(config, ranker, layout, ROOM)
        described = describe_plan(plan, tables.configs, states, world)
        batches = first_step(config)
        counts = count_rows([batch.sparse for batch in batches], tables, described, states, world)
        foreseen = rank_works(load_of(config, known, ranker, None), placement_of(described), world, world // hosts)
        for rank in range(world):
            simulated = simulate_rank(config, spec, plan, layout, rank, batches)
            collectives, updated = real[rank][name]
            assert list(simulated.collectives) == collectives, (name, rank)
            assert simulated.rows_updated == updated, (name, rank)
            assert simulated.rows_read == counts.read[rank], (name, rank)
            assert simulated.row_bytes_read == counts.bytes_read[rank], (name, rank)
            if name not in ("data_parallel", "mixture"):
                assert simulated.rows_updated == counts.updated[rank], (name, rank)
            # The analytic work has the bytes of everything but ids and touched rows, whose numbers it expects.
            for phase in ("pooled", "gradients", "dense"):
                if name != "unpooled" or phase == "dense":
                    assert _sums(simulated.collectives, phase) == _sums(foreseen[rank].collectives, phase), (
                        name,
                        phase,
                    )


def _sums(collectives: tuple[Collective, ...], phase: str) -> dict[tuple[str, str], tuple[int, int]]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for each in collectives:
        if each.phase == phase:
            sent, received = sums.get((each.kind, each.span), (0, 0))
            sums[each.kind, each.span] = sent + each.sent, received + each.received
    return sums


@pytest.mark.parametrize("kind", ["row_wise", "data_parallel"])
def test_a_plan_without_choice_is_that_of_the_planner(run: Path, kind: str) -> None:
    for world in (1, 3, 7):
        config = load_config(run, [f"sharding.default={kind}"])
        ranker, _ = build_ranker(config, open_dataset(config.data.path).spec)
        tables, layout = ranker.lookup.table_set.configs, layout_of(config.sharding, world, world)
        plan = simulated_plan(config, ranker, layout, ROOM)
        planned = foresee_plan(ranker, tables, config.sharding, layout, ROOM, 64)
        described = [describe_plan(each, tables, (), world) for each in (plan, planned)]
        assert described[0] == described[1]
        assert _kernels(plan) == _kernels(planned)


def _kernels(plan: ShardingPlan) -> dict[str, str]:
    return {name: table.compute_kernel for module in plan.plan.values() for name, table in module.items()}  # type: ignore[attr-defined]


def test_parts_are_those_of_the_readers(run: Path) -> None:
    config = load_config(run, ["data.lanes=8"])
    [whole] = first_step(config)[:1]
    split = open_dataset(config.data.path).split("train")
    for rank in range(4):
        with training_loader(config, split, Process(rank, 4, torch.device("cpu"))).epoch(0) as batches:
            own = next(iter(batches))
        part = part_of(whole, rank, 4)
        assert torch.equal(part.sparse.values(), own.sparse.values())
        assert torch.equal(part.sparse.lengths(), own.sparse.lengths())
        assert torch.equal(part.labels, own.labels)


def test_tables_larger_than_the_memory(run: Path) -> None:
    """Rows that a step does not touch take no memory."""
    config = load_config(run, ["data.lanes=8"])
    spec = open_dataset(config.data.path).spec.with_rows({"user": 4_000_000_000, "item": 1_000_000_000})
    ranker, _ = build_ranker(config, spec)
    batches = first_step(config)
    config = load_config(run, ["data.lanes=8", "sharding.default=row_wise", "model.embeddings.dim=64"])
    layout = layout_of(config.sharding, 8, 8)
    ranker, _ = build_ranker(config, spec)
    plan = simulated_plan(config, ranker, layout, ROOM)
    simulated = simulate_rank(config, spec, plan, layout, 0, batches)
    described = describe_plan(plan, ranker.lookup.table_set.configs, config.optimizer.sparse.states, 8)
    counts = count_rows(
        [batch.sparse for batch in batches], ranker.lookup.table_set, described, config.optimizer.sparse.states, 8
    )
    assert simulated.table_bytes > 128 << 30
    assert simulated.rows_updated == counts.updated[0] > 0
    assert np.all(counts.read[1:7] >= 0)


def test_unbounded_ids_are_refused(run: Path) -> None:
    config = load_config(run, ["data.unbounded={user: {rows: 100}}"])
    spec = open_dataset(config.data.path).spec
    ranker, _ = build_ranker(config, spec)
    layout = layout_of(config.sharding, 2, 2)
    plan = simulated_plan(config, ranker, layout, ROOM)
    with pytest.raises(UserError, match=r"^data\.unbounded: "):
        simulate_rank(config, spec, plan, layout, 0, [])
