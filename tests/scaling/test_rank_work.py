"""Bytes that the analytic work foresees, against those that real processes give to the collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.processes import this_process
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.embeddings.torchrec.plan import describe_plan
from dlrm_mtl.scaling.load import load_of
from dlrm_mtl.scaling.placement import placement_of
from dlrm_mtl.scaling.rank_work import rank_works
from dlrm_mtl.scaling.statistics import sample_ids
from dlrm_mtl.scaling.work import RankWork
from dlrm_mtl.tasks.targets import label_columns
from dlrm_mtl.training.build import build_model, build_optimizers, build_ranker, build_step
from tests import commands, synthetic
from tests.processes import run_processes

PLANS = {
    "table_wise": "{default: table_wise, processes_per_host: 2}",
    "row_wise": "{default: row_wise, processes_per_host: 2}",
    "column_wise": "{default: column_wise, processes_per_host: 2}",
    "table_row_wise": "{default: table_row_wise, processes_per_host: 2}",
    "table_column_wise": "{default: table_column_wise, processes_per_host: 2}",
    "grid_shard": "{default: grid_shard, processes_per_host: 2}",
    "mixture": "{default: row_wise, processes_per_host: 2, tables: {item: grid_shard, tags: data_parallel}}",
    "unpooled": "{default: table_wise, processes_per_host: 2, tables: {item: row_wise}}",
}

FLATTENED = "model.embeddings.features.history={pooling: flattened, length: 4}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=64)
    return commands.write_config(folder / "run.yaml", synthetic.config(folder, training={"epochs": 1, "max_steps": 1}))


def overrides(name: str) -> list[str]:
    return [f"sharding={PLANS[name]}", *([FLATTENED] if name == "unpooled" else [])]


@pytest.fixture(scope="module")
def measured(config: Path) -> list[dict[str, Any]]:
    return run_processes(4, counted, str(config))


def counted(rank: int, path: str) -> dict[str, Any]:
    """Bytes sent and received by kind of collective and size of its group, by plan; and the plan."""
    return {name: one_step(path, overrides(name)) for name in PLANS}


def one_step(path: str, changes: list[str]) -> tuple[Counter[tuple[str, int, str]], list[dict[str, Any]], int]:
    config, process = load_config(Path(path), changes), this_process()
    dataset = open_dataset(config.data.path)
    model = build_model(config, dataset.spec, process)
    optimizers = build_optimizers(config, model, 1)
    step = build_step(config, process, model, optimizers)
    labels = label_columns(config.tasks)
    loader = BatchLoader(dataset.split("train"), config.data, labels, rank=process.rank, world_size=process.world_size)
    with loader.epoch(0) as batches:
        batch = next(iter(batches))
    found: Counter[tuple[str, int, str]] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_to_all_single", "reduce_scatter_tensor", "all_gather_into_tensor", "all_reduce"):
            patch.setattr(dist, name, counting(found, name, getattr(dist, name)))
        step([batch], 0, 0)
    plan = describe_plan(model.plan, model.tables, config.optimizer.sparse.states, process.world_size)
    return found, plan, sum(batch.sparse.lengths().tolist())


def counting(found: Counter[tuple[str, int, str]], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        tensors = [each for each in [*arguments, *options.values()] if isinstance(each, Tensor)]
        received, sent = (tensors * 2)[:2]
        if "input" in options:
            received, sent = options["output"], options["input"]
        size = dist.get_world_size(options.get("group"))
        found[name, size, "sent"] += sent.nbytes
        found[name, size, "received"] += received.nbytes
        found[name, size, "calls"] += 1
        return function(*arguments, **options)

    return wrapper


KINDS = {
    "all_to_all": "all_to_all_single", "reduce_scatter": "reduce_scatter_tensor", "all_gather": "all_gather_into_tensor",
    "all_reduce": "all_reduce",
}  # fmt: skip


def foreseen(work: RankWork) -> Counter[tuple[str, int, str]]:
    found: Counter[tuple[str, int, str]] = Counter()
    for each in work.collectives:
        if each.phase == "dense":
            continue  # DDP calls the backend itself
        size = {"world": 4, "host": 2, "across_hosts": 2}[each.span]
        found[KINDS[each.kind], size, "sent"] += each.sent
        found[KINDS[each.kind], size, "received"] += each.received
        found[KINDS[each.kind], size, "calls"] += 1
    return found


@pytest.mark.parametrize("name", PLANS)
def test_bytes_are_those_of_real_processes(config: Path, measured: list[dict[str, Any]], name: str) -> None:
    run = load_config(config, overrides(name))
    dataset = open_dataset(run.data.path)
    ranker, spec = build_ranker(run, dataset.spec)
    tables = ranker.lookup.table_set
    load = load_of(run, spec, ranker, sample_ids(run, dataset, tables))
    placement = placement_of(measured[0][name][1])
    works = rank_works(load, placement, 4, 2)
    totals_foreseen: Counter[tuple[str, int, str]] = Counter()
    totals_measured: Counter[tuple[str, int, str]] = Counter()
    for rank, work in enumerate(works):
        expected, real = foreseen(work), measured[rank][name][0]
        totals_foreseen += expected
        totals_measured += real
        for key in expected | real:
            if key[0] == "all_to_all_single" and key[2] != "calls":
                continue  # which ids a process sends is drawn
            if key[:2] == ("all_reduce", 2) or (
                name in ("column_wise", "table_column_wise") and key[0] == "all_reduce"
            ):
                continue  # depends on the number of distinct rows
            assert expected[key] == real[key], (rank, key)
    for key in totals_foreseen | totals_measured:
        assert totals_foreseen[key] == pytest.approx(
            totals_measured[key], rel=0.15 if key[0] == "all_reduce" else 1e-3
        ), key
