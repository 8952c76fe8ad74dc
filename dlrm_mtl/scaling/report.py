"""Simulations on one screen, as JSON, and as a page."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from dlrm_mtl.config.check import check_tasks
from dlrm_mtl.config.load import load_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.console import Bar, console, say
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.dataset import Dataset, open_dataset
from dlrm_mtl.embeddings.torchrec.sharders import SHARDING_TYPES
from dlrm_mtl.reports.page import write_text
from dlrm_mtl.reports.terminal import rich_table
from dlrm_mtl.scaling.hardware import Hardware, load_hardware
from dlrm_mtl.scaling.simulate_group import simulated_processes
from dlrm_mtl.scaling.simulate_page import simulation_page, time_table, work_table
from dlrm_mtl.scaling.simulate_types import CONFIGURED, TypeResult, check_types, layout_for, simulate_type
from dlrm_mtl.scaling.work import PHASES
from dlrm_mtl.training.build import quieten
from dlrm_mtl.training.loaders import training_loader


def show_simulation(
    path: Path,
    overrides: list[str] | None,
    plugins: list[str] | None,
    worlds: list[int],
    types: list[str],
    hardware_name: str,
    per_host: int | None,
    as_json: Path | None,
    html: Path | None,
) -> None:
    """Simulate the configuration in the file ``path``; the other arguments are those of `dlrm-mtl simulate`.

    Raises:
        UserError: an argument is wrong, or a named sharding type does not fit.
    """
    quieten()
    config = load_config(path, overrides, plugins)
    check_types(types)
    hardware = load_hardware(hardware_name)
    layouts = [layout_for(config, world, per_host or hardware.processes_per_host) for world in dict.fromkeys(worlds)]
    dataset = open_dataset(config.data.path)
    check_tasks(config, dataset.spec)
    batches = global_batch(config, dataset)
    results: list[TypeResult] = []
    shardings = types or [CONFIGURED, *SHARDING_TYPES]
    left_out: list[str] = []
    with Bar("simulate", len(layouts) * len(shardings), shown=True, brief=True) as bar:
        for layout in layouts:
            for sharding in shardings:
                name = f"{sharding} on {layout.world_size}"
                done = len(results) + len(left_out)
                try:
                    result = simulate_type(
                        config,
                        dataset.spec,
                        layout,
                        hardware,
                        batches,
                        sharding,
                        lambda what, name=name, done=done: bar.update(done, f"{name}: {what}"),  # type: ignore[misc]
                    )
                except UserError as error:
                    if types:
                        raise
                    left_out.append(f"{name}: left out: {error}")
                    continue
                results.append(result)
    for layout in layouts:
        own = [result for result in results if result.layout is layout]
        if own:
            show_tables(config, hardware, own)
    for text in left_out:
        say(text)
    if as_json is not None:
        write_text(as_json, json.dumps(as_dictionary(config, hardware, results), indent=2) + "\n")
    if html is not None:
        simulation_page(config, hardware, results, left_out).write(html)
        say(f"{html}: written; open it in a browser")


def global_batch(config: RunConfig, dataset: Dataset) -> list[Batch]:
    """The global batch of the first step of training, in micro-batches.

    Raises:
        UserError: the split has fewer rows than a global batch.
    """
    split = dataset.split("train")
    if split.rows < config.data.batch_size:
        raise UserError(
            f"data.batch_size: {config.data.batch_size} is more than the {split.rows} rows of the split train; lower it."
        )
    with simulated_processes(0, 1, 1):  # counts of items for drawn negatives are summed over processes
        loader = training_loader(config, split, Process(0, 1, torch.device("cpu")))
    with loader.epoch(0) as batches:
        return [batch for batch, _ in zip(batches, range(config.training.micro_batches), strict=False)]


def show_tables(config: RunConfig, hardware: Hardware, results: list[TypeResult]) -> None:
    """Print the work of a step on one number of processes, and its time."""
    layout = results[0].layout
    where = f"{layout.world_size} processes on {layout.hosts} host(s) of {hardware.name}"
    work = work_table(results, f"{config.name}: a step of {config.data.training_rows:,} rows, {where}")
    console().print(rich_table(work))
    say("MiB that the busiest process sends or receives, whichever is more; then largest over mean of all processes")
    console().print(rich_table(time_table(results, "Predicted time of the step in ms")))


def as_dictionary(config: RunConfig, hardware: Hardware, results: list[TypeResult]) -> dict[str, Any]:
    """The simulations as JSON."""
    return {
        "run": config.name,
        "hardware": hardware.name,
        "rows": config.data.training_rows,
        "results": [result_dictionary(result) for result in results],
    }


def result_dictionary(result: TypeResult) -> dict[str, Any]:
    """One simulation as JSON: bytes of the busiest process, the largest of rows and memory, balance and time."""
    return {
        "sharding": result.sharding,
        "processes": result.layout.world_size,
        "hosts": result.layout.hosts,
        "fits": result.fits,
        "bytes": {phase: {"sent": result.sent(phase), "received": result.received(phase)} for phase in PHASES},
        "rows_read": int(result.counts.read.max()),
        "rows_updated": int(result.counts.updated.max()),
        "held_bytes": max(result.held),
        "imbalance": {name: result.imbalance(name) for name in ("rows", "updates", "bytes", "memory")},
        "seconds": {**result.time.parts, "total": result.time.total},
        "waiting": result.time.waiting,
        "simulated": [
            {
                "rank": each.rank,
                "rows_read": each.rows_read,
                "rows_updated": each.rows_updated,
                "collectives": [
                    {
                        "kind": c.kind,
                        "phase": c.phase,
                        "span": c.span,
                        "sent": c.sent,
                        "received": c.received,
                        "times": n,
                    }
                    for c, n in Counter(each.collectives).items()
                ],
            }
            for each in result.simulated
        ],
    }
