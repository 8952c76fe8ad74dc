"""The plan of a run before training: placement of its tables, and memory of every process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from dlrm_mtl.config.check import check_tasks
from dlrm_mtl.config.load import load_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.console import console, held_by_process, plan_table, ranks_text, say
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import parse_size
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.order import own_lanes
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.tables import is_table
from dlrm_mtl.embeddings.torchrec.plan import (
    MIB,
    RESERVED,
    Processes,
    Room,
    describe_plan,
    foresee_plan,
    layout_of,
    own_room,
)
from dlrm_mtl.training.build import build_ranker, quieten

ID_BYTES = 16
"""Bytes per row of an unbounded vocabulary's map: the id, its last use, its number of batches."""


@dataclass(frozen=True)
class Held:
    """Memory in MiB that a process holds during training."""

    table_weights: float
    table_state: float
    """State of the table optimizer, and gradients of replicated tables."""
    dense: float
    """Weights, gradients and optimizer state outside the tables."""
    ids: float
    """The map of unbounded ids to rows."""

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.table_weights + self.table_state + self.dense + self.ids


@dataclass(frozen=True)
class ForeseenPlan:
    """Placement of a run's tables, and memory of its processes."""

    layout: Processes
    room: Room
    tables: list[dict[str, Any]]
    """Tables as in `plan.json` of the run."""
    held: list[Held]
    """Memory by process."""

    @property
    def room_mib(self) -> float:
        """MiB available to a process, on the device of its tables."""
        return self.room.of_process(self.layout) / MIB


def foresee(config: RunConfig, spec: DatasetSpec, processes: int, hosts: int, room: Room) -> ForeseenPlan:
    """Plan a run on ``processes`` processes, spread evenly over ``hosts`` hosts.

    Args:
        config: configuration of the run.
        spec: description of its data set.
        processes: number of all processes; independent of this machine.
        hosts: number of hosts.
        room: memory of the hosts.

    Raises:
        UserError: the configuration does not fit the data set, the processes or the memory.
    """
    check_tasks(config, spec)
    if processes % hosts:
        raise UserError(
            f"--hosts {hosts}: does not divide {processes} processes; every host has the same number of them."
        )
    own_lanes(config.data.lanes, 0, processes)
    layout = layout_of(config.sharding, processes, processes // hosts)
    quieten()
    ranker, spec = build_ranker(config, spec)
    tables = ranker.lookup.table_set.configs
    plan = foresee_plan(ranker, tables, config.sharding, layout, room, config.data.training_rows)
    described = describe_plan(plan, tables, config.optimizer.sparse.states, processes)
    dense = dense_bytes(config, ranker) / MIB
    ids = sum(unbounded.rows for unbounded in config.data.unbounded.values()) * ID_BYTES / processes / MIB
    held = [Held(weights, state, dense, ids) for weights, state in held_by_process(described)]
    return ForeseenPlan(layout, room, described, held)


def dense_bytes(config: RunConfig, model: nn.Module) -> int:
    """Bytes of weights, gradients and optimizer state outside the tables, measured by a step with zero gradients."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if not is_table(name)]
    optimizer = config.optimizer.dense.build(named)
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for of in optimizer.state.values() for value in of.values() if isinstance(value, Tensor)]
    tensors = [*(parameter for _, parameter in named), *(parameter for _, parameter in named), *state]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def show_plan(
    path: Path,
    overrides: list[str] | None,
    plugins: list[str] | None,
    processes: int,
    hosts: int,
    memory: str | None,
    gpu_memory: str | None,
    as_json: bool,
) -> None:
    """Print the plan of the configuration in the file ``path``; the other arguments are those of `dlrm-mtl plan`.

    Raises:
        UserError: an argument is wrong, or no plan fits.
    """
    config = load_config(path, overrides, plugins)
    room = own_room(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    gpu = memory_size(gpu_memory, "--gpu-memory") if gpu_memory is not None else room.gpu
    if memory is not None:
        room = Room(memory_size(memory, "--memory"), gpu)
    foreseen = foresee(config, open_dataset(config.data.path).spec, processes, hosts, Room(room.host, gpu))
    if as_json:
        say(json.dumps(_as_json(config, foreseen), indent=2))
        return
    out = console()
    out.print(plan_table(foreseen.tables, rows=None))
    out.print(_held_table(foreseen.held))
    of = "its GPU" if gpu is not None else f"a host's {foreseen.room.host / MIB:,.0f} MiB"
    fullest = max(held.total for held in foreseen.held)
    out.print(
        f"{config.name}: a process would hold up to {fullest:,.1f} MiB of the {foreseen.room_mib:,.0f} MiB that it has "
        f"({of}, {foreseen.layout.per_host} process(es) a host); the planner keeps {RESERVED:.0%} for batches and all else"
    )


def memory_size(text: str, option: str) -> int:
    """Number of bytes in a text such as ``64GB`` or ``500 MiB``.

    Raises:
        UserError: the text is not a size; ``option`` names its option.
    """
    size = parse_size(text)
    if size is None or size < MIB:
        raise UserError(f"{option} {text}: is no amount of memory; write one such as 64GB or 80GiB.")
    return size


def _held_table(held: list[Held]) -> Table:
    """Table of memory, with processes that hold the same in one row."""
    table = Table(title="MiB of each process", title_justify="left")
    for heading in ("processes", "table weights", "table state", "dense part", "unbounded ids", "all"):
        table.add_column(heading, justify="left" if heading == "processes" else "right")
    alike: dict[Held, list[int]] = {}
    for rank, each in enumerate(held):
        alike.setdefault(each, []).append(rank)
    for each, ranks in alike.items():
        sizes = (each.table_weights, each.table_state, each.dense, each.ids, each.total)
        table.add_row(ranks_text(ranks), *(f"{size:,.2f}" for size in sizes))
    return table


def _as_json(config: RunConfig, foreseen: ForeseenPlan) -> dict[str, Any]:
    return {
        "run": config.name,
        "processes": foreseen.layout.world_size,
        "processes_per_host": foreseen.layout.per_host,
        "room_mib": round(foreseen.room_mib, 2),
        "held_mib": [{**asdict(held), "total": held.total} for held in foreseen.held],
        "tables": foreseen.tables,
    }
