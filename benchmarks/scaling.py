"""Scaling of training steps by sharding type and shape of the tables: measured on the processes there are, simulated beyond.

Alone, it measures one and two processes of this machine (or others, ``--processes``), predicts the same steps from counted
work, and simulates up to 1,024 processes with the work of a process held equal (weak) and with a global batch held equal
(strong). Exponents say what grows with the number of processes, the batch and the width of tables. Started by a launcher
(torchrun, launchers/bench.py), it measures on the processes of the job.

    python -m benchmarks scaling [--quick] [--processes 1x1 1x2 2x2] [--network 100mbit] [--json FILE] [--html FILE]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scaling_cases import SHAPES, TYPES, Shape, configure, draw_batch
from benchmarks.scaling_measured import OTHER_PRECISIONS, cases_of, measure_here, measure_processes
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.embeddings.torchrec.plan import HOST_BASED, Processes
from dlrm_mtl.scaling.cost import step_time
from dlrm_mtl.scaling.hardware import Hardware, load_hardware
from dlrm_mtl.scaling.measure import describe
from dlrm_mtl.scaling.simulate_types import TypeResult, simulate_type
from dlrm_mtl.scaling.work import PHASES, Phase

ROWS_EACH = 256
"""Rows of a process: in measurements, and with weak scaling."""
ROWS_ALL = 8192
"""Rows of all processes with strong scaling."""
VECTORS: tuple[Phase, ...] = ("pooled", "gradients")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark beside those of all."""
    parser.add_argument("--html", type=Path, metavar="FILE", help="where to write the page")
    parser.add_argument(
        "--processes",
        nargs="+",
        metavar="NxM",
        type=_layout,
        default=[(1, 1), (1, 2)],
        help="hosts, all on this machine, and processes on each, to measure one after the other (default: 1x1 1x2)",
    )
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", choices=SHAPES, help="only tables of these shapes")
    parser.add_argument("--steps", type=int, metavar="N", help="number of measured steps (default: 15; 7 with --quick)")
    parser.add_argument(
        "--network", metavar="RATE", help="measure two hosts of one process over a link of this rate, such as 100mbit"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="figures of a simulation to compare the measured with"
    )
    parser.add_argument("--hardware", default="h100x8", help="hardware of the simulated processes (default: h100x8)")
    parser.add_argument("--no-simulation", action="store_true", help="only measure and predict")


def _layout(text: str) -> tuple[int, int]:
    """Hosts and processes on each of a text such as 2x4."""
    hosts, _, each = text.partition("x")
    if not (hosts.isdecimal() and each.isdecimal() and int(hosts) and int(each)):
        raise argparse.ArgumentTypeError(f"{text!r} is not hosts and processes on each, such as 2x4")
    return int(hosts), int(each)


def run(
    quick: bool,
    html: Path | None = None,
    processes: Sequence[tuple[int, int]] = ((1, 1), (1, 2)),
    shapes: Sequence[str] | None = None,
    steps: int | None = None,
    network: str | None = None,
    compare: Path | None = None,
    hardware: str = "h100x8",
    no_simulation: bool = False,
) -> dict[str, Any]:
    """Measure, simulate, print tables, and return the figures."""
    known = json.loads(compare.read_text()) if compare is not None else None
    shapes = shapes or (["many small", "skewed"] if quick else list(SHAPES))
    steps = steps or (7 if quick else 15)
    predictions: list[dict[str, Any]] = []
    simulated: list[dict[str, Any]] = []
    laws: list[dict[str, Any]] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        with process_group(patience=None) as process:
            measured = [measure_here(process, ROWS_EACH, steps, shapes)]
            if not process.is_main:
                return {}
    else:
        layouts = processes if network is None else [(1, 1), (2, 1)]
        measured = [
            measure_processes(hosts, each, ROWS_EACH, steps, shapes, network if hosts * each > 1 else None)
            for hosts, each in layouts
        ]
        predictions = predict(measured)
        simulated = [] if no_simulation else simulate(load_hardware(hardware), shapes, quick)
        laws = [] if no_simulation else fit_laws(load_hardware(hardware))
    figures: dict[str, Any] = {
        "quick": quick,
        "network": network,
        "hardware": hardware,
        "measured": measured,
        "predictions": predictions,
        "simulated": simulated,
        "laws": laws,
    }
    if known is not None:
        figures["compared"] = compare_bytes(measured, known)
    show(figures)
    if html is not None:
        from benchmarks.scaling_page import page

        page(figures).write(html)
    return figures


def predict(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time of every measured step, from its counted work and from the probes that took their turns between the steps.

    No time of a measured case enters. Both the clock's and the processor's times are predicted, each from the probes by the
    same measure. Waiting for another process takes no time of the processor.
    """
    found = []
    for job in measured:
        world = job["processes"]
        for block in job["blocks"]:
            machines = {clock: machine_of(world, probes) for clock, probes in block["probes"].items()}
            for case in block["cases"]:
                found.append({**_key(case), "hosts": job["hosts"]})
                shape, some = SHAPES[case["shape"]], machines["seconds"]
                works = simulated_case(shape, case["rows"], world, job["hosts"], case["sharding"], some, True).works
                for clock, machine in machines.items():
                    machine = machine.model_copy(update={"between_hosts": machine.within_host})
                    time = step_time(machine, works, job["hosts"])
                    found[-1][clock] = {"measured": case[clock], "predicted": time.total, "parts": time.parts}
    return found


def machine_of(world: int, seconds: dict[str, float]) -> Hardware:
    """This machine by the times of the probes, all of whose matrix products count as those of float32."""
    products = dict.fromkeys(OTHER_PRECISIONS, seconds["float32"])
    return describe("this machine", "cpu", world, seconds | products)


def simulated_case(
    shape: Shape, rows: int, world: int, hosts: int, sharding: str, hardware: Hardware, extremes: bool = False
) -> TypeResult:
    """Simulate a step of the benchmark."""
    config, spec = configure(shape, rows, world, sharding, world // hosts)
    batch = draw_batch(shape, rows)
    return simulate_type(config, spec, Processes(world, world // hosts), hardware, [batch], extremes=extremes)


def simulate(hardware: Hardware, shapes: Sequence[str], quick: bool) -> list[dict[str, Any]]:
    """Steps of up to 1,024 processes, 64 with ``quick``."""
    worlds = (8, 64) if quick else (8, 32, 128, 1024)
    found = []
    for name in shapes:
        for mode in ("weak", "strong"):
            for world in worlds:
                for sharding in TYPES:
                    hosts = max(world // hardware.processes_per_host, 1)
                    if hosts == 1 and sharding in (*HOST_BASED, "table_column_wise"):
                        continue
                    rows = ROWS_EACH * world if mode == "weak" else ROWS_ALL
                    try:
                        result = simulated_case(SHAPES[name], rows, world, hosts, sharding, hardware)
                    except UserError as error:
                        print(f"left out: {name}, {sharding}, {world} processes: {error}")
                        continue
                    found.append({"shape": name, "mode": mode, "rows": rows, **figures_of(result, sharding)})
            print(f"simulated: {name}, {mode}", flush=True)
    return found


def figures_of(result: TypeResult, sharding: str) -> dict[str, Any]:
    """Figures of a simulated step: bytes of the busiest process, in both directions together."""
    both = {phase: max(sum(work.bytes_of(phase)) for work in result.works) for phase in PHASES}
    return {
        "sharding": sharding,
        "processes": result.layout.world_size,
        "hosts": result.layout.hosts,
        "ids": both["ids"],
        "vectors": sum(both[phase] for phase in VECTORS),
        "dense": both["dense"],
        "sent": max(sum(work.bytes_of(phase)[0] for phase in PHASES) for work in result.works),
        "received": max(sum(work.bytes_of(phase)[1] for phase in PHASES) for work in result.works),
        "held": max(result.held),
        "rows_imbalance": result.imbalance("rows"),
        "memory_imbalance": result.imbalance("memory"),
        "seconds": result.time.total,
        "bound": result.time.bound,
    }


def fit_laws(hardware: Hardware) -> list[dict[str, Any]]:
    """Exponents of what a process sends and receives, and of its tables, on tables of the shape `skewed`."""
    base = replace(SHAPES["skewed"], rows=50_000)
    series = {
        "processes, equal work each": [(base, 64 * world, world) for world in (16, 32, 64)],
        "processes, equal global batch": [(base, 4096, world) for world in (16, 32, 64)],
        "rows of the batch": [(base, rows, 16) for rows in (1024, 2048, 4096)],
        "columns of the tables": [(replace(base, dim=dim), 1024, 16) for dim in (128, 256, 512)],
    }
    found = []
    for name, cases in series.items():
        for sharding in TYPES:
            results = [
                figures_of(simulated_case(shape, rows, world, world // 8, sharding, hardware), sharding)
                for shape, rows, world in cases
            ]
            sizes = [{"c": shape.dim, "r": rows, "p": world}[name[0]] for shape, rows, world in cases]
            exponents = {key: exponent(sizes, [each[key] for each in results]) for key in ("ids", "vectors", "held")}
            found.append({"grows": name, "sharding": sharding, **exponents})
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Exponent of the power of ``sizes`` that fits ``values`` best, by least squares of logarithms; None without values."""
    if min(values) <= 0:
        return None
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2)


def compare_bytes(measured: Sequence[dict[str, Any]], known: dict[str, Any]) -> list[dict[str, Any]]:
    """Measured bytes and times over those of the simulation with the same tables, type, processes, hosts and rows."""
    of = {(*_key(case).values(), case["hosts"]): case for case in known.get("simulated", [])}
    for job in known.get("measured", []):
        of |= {(*_key(case).values(), case["hosts"]): case for case in cases_of(job)}
    result = []
    for job in measured:
        for case in cases_of(job):
            other = of.get((*_key(case).values(), case["hosts"]))
            if other is not None:
                ratios = {
                    name: case[name] / other[name] if other[name] else 1.0 for name in ("sent", "received", "seconds")
                }
                result.append({**_key(case), **ratios})
    return result


def _key(case: dict[str, Any]) -> dict[str, Any]:
    return {name: case[name] for name in ("shape", "sharding", "processes", "rows")}


def show(figures: dict[str, Any]) -> None:
    """Print all tables."""
    for job in figures["measured"]:
        print(f"\nmeasured: {job['processes']} process(es) on {job['hosts']} host(s)")
        print(f"  {'shape':12}{'sharding':20}{'ms a step':>10}{'processor':>10}{'MB sent':>9}{'MB received':>12}")
        for case in cases_of(job):
            times = f"{1e3 * case['seconds']:10.1f}{1e3 * case['processor']:10.1f}"
            sizes = f"{case['sent'] / 1e6:9.2f}{case['received'] / 1e6:12.2f}"
            print(f"  {case['shape']:12}{case['sharding']:20}{times}{sizes}")
    if figures["predictions"]:
        heading = "".join(f"{name:>14}{'predicted':>10}{'error':>8}" for name in ("ms a step", "of processor"))
        print(f"\npredicted\n  {'shape':12}{'sharding':20}{'processes':>10}{heading}")
        for each in figures["predictions"]:
            times, of = "", f"{each['hosts']}x{each['processes'] // each['hosts']}"
            for clock in ("seconds", "processor"):
                measured, predicted = each[clock]["measured"], each[clock]["predicted"]
                times += f"{1e3 * measured:14.1f}{1e3 * predicted:10.1f}{predicted / measured - 1:8.0%}"
            print(f"  {each['shape']:12}{each['sharding']:20}{of:>10}{times}")
    if figures["simulated"]:
        heading = f"{'processes':>9}{'ids MB':>9}{'vectors MB':>11}{'held MB':>9}{'rows max/mean':>14}{'ms':>7}"
        print(f"\nsimulated on {figures['hardware']}\n  {'shape':12}{'scaling':8}{'sharding':20}{heading}")
        for each in figures["simulated"]:
            sizes = f"{each['ids'] / 1e6:9.2f}{each['vectors'] / 1e6:11.2f}{each['held'] / 1e6:9.1f}"
            rest = f"{each['rows_imbalance']:14.2f}{1e3 * each['seconds']:7.2f}"
            print(f"  {each['shape']:12}{each['mode']:8}{each['sharding']:20}{each['processes']:9}{sizes}{rest}")
    if figures["laws"]:
        print(f"\nexponents\n  {'grows':32}{'sharding':20}{'ids':>7}{'vectors':>9}{'held':>7}")
        for each in figures["laws"]:
            values = ["none" if each[key] is None else f"{each[key]:.2f}" for key in ("ids", "vectors", "held")]
            print(f"  {each['grows']:32}{each['sharding']:20}{values[0]:>7}{values[1]:>9}{values[2]:>7}")
    for each in figures.get("compared", []):
        ratios = ", ".join(f"{name} {each[name]:.2f}" for name in ("sent", "received", "seconds"))
        print(f"measured / simulated: {each['shape']}, {each['sharding']}, {each['processes']} processes: {ratios}")
