"""The page of ``dlrm-mtl plan`` for a cluster: tables, memory, time of a step, balance, and what would help."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from dlrm_mtl.config.load import load_config
from dlrm_mtl.console import Bar, console, ranks_text, say
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import size_text
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.embeddings.torchrec.plan import MIB, RESERVED, Room
from dlrm_mtl.embeddings.torchrec.plan_file import write_plan
from dlrm_mtl.run.plan import memory_size
from dlrm_mtl.scaling.cluster_plan import ClusterPlan, plan_cluster
from dlrm_mtl.scaling.cost import PARTS, spread
from dlrm_mtl.scaling.hardware import Hardware, load_hardware
from dlrm_mtl.scaling.placement import Placed
from dlrm_mtl.scaling.tables import FLOAT

SHOWN = 12
"""Number of tables that have a row of their own."""

HELP = {
    "overhead": "the fixed time of a step: larger batches (data.batch_size) share it among more rows",
    "ids": "the exchange of ids: data_parallel for small tables sends none, and fewer column shards send them fewer times",
    "lookup": "rows of the tables at random places of memory: more processes, or tables cut so that no process reads most",
    "pooled": "the exchange of looked-up vectors: data_parallel for small tables, smaller dims, or fewer, larger hosts",
    "dense part": "the dense part of the model: training.matmul_precision: high on a GPU that has TF32, or smaller layers",
    "dense exchange": "the sum of dense gradients: larger batches, fewer processes, or a smaller dense part",
    "gradients": "the exchange of gradients of looked-up vectors: data_parallel for small tables, smaller dims, or fewer hosts",
    "whole gradients": "gradients of whole data-parallel tables: another sharding type for the largest of them",
    "row gradients": "sums of gradients by row: more processes, or tables cut so that no process has most",
    "update": "the update of touched rows: more processes, or tables cut so that no process has most",
    "step": "small exchanges of a step, one for each team of column shards: fewer tables cut by columns",
}
"""What a step is bound by, and what would help, by its longest part."""


def show_cluster_plan(
    path: Path,
    overrides: list[str] | None,
    plugins: list[str] | None,
    processes: int | None,
    hosts: int,
    memory: str | None,
    gpu_memory: str | None,
    hardware_name: str | None,
    planner: str | None,
    write: Path | None,
    as_json: bool,
) -> None:
    """Print the plan of the configuration in the file ``path``; the other arguments are those of `dlrm-mtl plan`.

    Raises:
        UserError: an argument is wrong, or no plan fits.
    """
    config = load_config(path, overrides, plugins)
    if hardware_name is None and torch.cuda.is_available():
        raise UserError(
            "--hardware is needed: name the hardware, such as h100x8, or a file of dlrm-mtl hardware measure."
        )
    hardware = load_hardware(hardware_name or "cpu")
    count = processes if processes is not None else hosts * hardware.processes_per_host
    if planner is None:
        planner = "file" if config.sharding.plan is not None and write is None else "cost"
    room = _room(hardware, count, hosts, memory, gpu_memory)
    with Bar("planning", 1, shown=not as_json, brief=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        plan = plan_cluster(config, open_dataset(config.data.path), hardware, count, hosts, planner, room, progress)
    if write is not None:
        write_plan(write, plan.file())
    if as_json:
        say(json.dumps(as_content(config.name, plan), indent=2))
        return
    out = console()
    out.print(_tables(plan))
    out.print(_memory(plan))
    out.print(_time(plan))
    for line in sentences(config.name, plan):
        out.print(line)
    if write is not None:
        out.print(f"written to {write}: train with --set sharding.plan={write}")
    elif planner == "cost":
        out.print(
            "this plan is the cost planner's; a run takes TorchRec's unless --write FILE keeps it for sharding.plan: FILE"
        )


def _room(hardware: Hardware, processes: int, hosts: int, memory: str | None, gpu_memory: str | None) -> Room:
    per_host = max(processes // hosts, 1)
    host = hardware.memory_per_process * per_host if hardware.device == "cpu" else hardware.memory_per_host
    if memory is not None:
        host = memory_size(memory, "--memory")
    if hardware.device == "cpu":
        if gpu_memory is not None:
            raise UserError(
                f"--gpu-memory {gpu_memory}: {hardware.name} has no GPU; remove the option or use --memory."
            )
        return Room(host)
    return Room(
        host, memory_size(gpu_memory, "--gpu-memory") if gpu_memory is not None else hardware.memory_per_process
    )


def sentences(name: str, plan: ClusterPlan) -> list[str]:
    """What the figures say."""
    time, layout = plan.time, plan.layout
    most = max(plan.held)
    balance = ", ".join(f"{what} {each.imbalance:.2f}" for what, each in time.spreads.items())
    share = time.parts[time.bound] / time.total
    source = "a sample of the data set" if plan.sampled else "the data set's statistics or defaults, every row alike"
    return [
        f"{name}: a process would hold up to {size_text(most)} of the {size_text(plan.room)} that it has; "
        f"{RESERVED:.0%} are kept for batches and all else",
        f"expected step: {_seconds(time.total)}, {plan.rows_per_second:,.0f} rows/s in batches of {plan.load.rows:,} on "
        f"{layout.world_size} process(es), {layout.hosts} host(s) of {plan.hardware.name}, products in {plan.precision}; a "
        f"process waits {time.waiting:.0%} of it for slower ones, on average",
        f"largest over mean of the processes: {balance}",
        f"bound ({share:.0%}) by {HELP[time.bound]}",
        f"lookups are those of {source}; overlap of phases is not counted, so a step may take less",
    ]


def _seconds(value: float) -> str:
    return f"{value * 1e3:,.2f} ms" if value < 1 else f"{value:,.2f} s"


def _tables(plan: ClusterPlan) -> Table:
    table = Table(title="Sharding plan; MiB of the largest shard", title_justify="left")
    for heading in ("table", "rows", "dim", "ids/row", "sharding", "shards", "ranks", "weights"):
        table.add_column(heading, justify="left" if heading in ("table", "sharding", "ranks") else "right")
    loads = sorted(plan.load.tables, key=lambda each: -each.weight_bytes)
    shown = loads if len(loads) <= SHOWN + 1 else loads[:SHOWN]
    for each in shown:
        placed = plan.placement[each.name]
        largest = max((rows * columns for rows, columns in placed.sizes), default=each.rows * each.dim) * FLOAT
        table.add_row(
            each.name, f"{each.rows:,}", str(each.dim), f"{each.ids:,.1f}", placed.type, str(len(placed.ranks) or 1),
            _ranks(placed), f"{largest / MIB:,.2f}",
        )  # fmt: skip
    rest = loads[len(shown) :]
    if rest:
        kinds = Counter(plan.placement[each.name].type for each in rest)
        types = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        ids = sum(each.ids for each in rest)
        table.add_row(f"{len(rest)} smaller ones", f"{sum(each.rows for each in rest):,}", "", f"{ids:,.1f}", types)
    return table


def _ranks(placed: Placed) -> str:
    text = ranks_text(sorted(set(placed.ranks))) if placed.ranks else "all"
    return text if len(text) <= 24 else f"{len(set(placed.ranks))} processes"


def _memory(plan: ClusterPlan) -> Table:
    table = Table(title="Memory of the processes", title_justify="left")
    for heading in ("", "least", "mean", "most", "process with most"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = {
        "table weights": [work.table_bytes for work in plan.works],
        "table state": [work.state_bytes for work in plan.works],
        "dense part and ids": [plan.fixed] * len(plan.works),
        "all": plan.held,
    }
    for name, sizes in rows.items():
        own = spread(sizes)
        texts = [size_text(round(size)) for size in (min(sizes), own.mean, own.largest)]
        table.add_row(name, *texts, "" if min(sizes) == max(sizes) else str(own.slowest_rank))
    return table


def _time(plan: ClusterPlan) -> Table:
    table = Table(title="Expected time of a step; every part waits for its slowest process", title_justify="left")
    for heading in ("part", "time", "share", "slowest process"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for part in PARTS:
        seconds = plan.time.parts[part]
        if seconds:
            table.add_row(part, _seconds(seconds), f"{seconds / plan.time.total:.0%}", str(plan.time.slowest[part]))
    return table


def as_content(name: str, plan: ClusterPlan) -> dict[str, Any]:
    """The plan as a JSON object."""
    return {
        "run": name,
        "hardware": plan.hardware.name,
        "planner": plan.planner,
        "processes": plan.layout.world_size,
        "processes_per_host": plan.layout.per_host,
        "batch_rows": plan.load.rows,
        "precision": plan.precision,
        "lookups_sampled": plan.sampled,
        "room_bytes": plan.room,
        "held_bytes": plan.held,
        "step_seconds": plan.time.total,
        "rows_per_second": plan.rows_per_second,
        "parts": plan.time.parts,
        "slowest": plan.time.slowest,
        "waiting": plan.time.waiting,
        "bound": plan.time.bound,
        "imbalance": {what: {**asdict(each), "imbalance": each.imbalance} for what, each in plan.time.spreads.items()},
        "tables": [
            {**table.model_dump(), "ids_per_row": plan.load.by_name[table.table].ids} for table in plan.file().tables
        ],
    }
