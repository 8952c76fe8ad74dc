"""Measured steps of the scaling benchmark: on the processes of this job, or on one and two of this machine.

For a slow network two network namespaces are joined by a pair of virtual Ethernet devices whose rate the kernel limits (tc,
tbf); this needs the rights of root.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling_cases import SHAPES, TYPES, configure, draw_batch
from dlrm_mtl.core.phases import PhaseClock
from dlrm_mtl.core.processes import Process, gather_objects, process_group
from dlrm_mtl.embeddings.torchrec import compat
from dlrm_mtl.embeddings.torchrec.plan import HOST_BASED
from dlrm_mtl.scaling.probes import machine_probes, timed, turn
from dlrm_mtl.scaling.record import CollectiveRecorder
from dlrm_mtl.scaling.simulate_rows import FLOAT, empty, part_of
from dlrm_mtl.scaling.step_probe import step_probes
from dlrm_mtl.training.build import build_model, build_optimizers, build_step, quieten

WARM_UP = 3
TOGETHER = 512 << 20
"""Largest bytes of tables whose types take their steps in turns; others are measured one after the other."""
OTHER_PRECISIONS = ("tf32", "bfloat16")
"""Probes that tell nothing of these steps, whose matrix products are of float32."""
CLOCKS = {"seconds": time.perf_counter, "processor": time.process_time}
"""What a time is measured with: the clock, and the time of the processors that the process had, all threads together."""


@dataclass
class Case:
    """A sharding type of a shape, and the times of its steps."""

    sharding: str
    step: Callable[[int], object]
    """Takes the step of a number."""
    clock: PhaseClock
    times: list[dict[str, float]] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    def turn(self, number: int) -> None:
        """Take a step so that caches hold what it needs, and then one whose times are kept."""
        self.step(number)
        with self.clock:
            self.times.append(timed(lambda: self.step(number), CLOCKS))
        self.phases.append(self.clock.take())


def measure_here(process: Process, rows_each: int, steps: int, shapes: Sequence[str]) -> dict[str, Any]:
    """Measure steps on the processes of this job; every process calls it, and all get the figures.

    The sharding types of a shape take one step each in turns, and in every turn the probes of the machine run, so that other
    work on the machine slows all of them alike.
    """
    quieten()
    torch.set_num_threads(1)
    world = process.world_size
    per_host = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    probes = [probe for probe in machine_probes(process.device, world) if probe.name not in OTHER_PRECISIONS]
    probes += step_probes(process)
    for number in range(WARM_UP):
        for probe in probes:
            probe.work(number)
    types = [
        sharding
        for sharding in TYPES
        if world != per_host
        or sharding not in (*HOST_BASED, "table_column_wise")  # the same as row_wise and column_wise
    ]
    blocks = []
    for name in shapes:
        shape = SHAPES[name]
        small = shape.tables * shape.rows * shape.dim * FLOAT * len(types) <= TOGETHER
        for together in [types] if small else [[each] for each in types]:
            cases = [_case(process, name, sharding, rows_each, per_host) for sharding in together]
            probed: dict[str, list[dict[str, float]]] = {probe.name: [] for probe in probes}
            for number in range(WARM_UP, WARM_UP + steps):
                for case in cases:
                    case.turn(number)
                for probe in probes:
                    probed[probe.name] += turn(probe, number, CLOCKS)
            key = {"shape": name, "processes": world, "hosts": world // per_host, "rows": rows_each * world}
            found = [{**key, "sharding": case.sharding, **_figures(case, WARM_UP + steps, per_host)} for case in cases]
            blocks.append({"probes": _medians(probed), "cases": found})
            del cases
    return {"processes": world, "hosts": world // per_host, "blocks": blocks}


def _medians(probed: Mapping[str, Sequence[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Median times of the probes, of the median process, by clock and name."""
    own = {clock: {name: _median(times, clock) for name, times in probed.items()} for clock in CLOCKS}
    of_ranks = gather_objects(own)
    return {
        clock: {name: statistics.median(each[clock][name] for each in of_ranks) for name in probed} for clock in CLOCKS
    }


def cases_of(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases of a measured job."""
    return [case for block in job["blocks"] for case in block["cases"]]


def _case(process: Process, name: str, sharding: str, rows_each: int, per_host: int) -> Case:
    """A built and warm model of one sharding type, and its step on this process's rows."""
    shape, world = SHAPES[name], process.world_size
    batch = draw_batch(shape, rows_each * world)
    own, nothing = part_of(batch, process.rank, world).to(process.device), empty(batch, rows_each).to(process.device)
    config, spec = configure(shape, rows_each * world, world, sharding, per_host)
    model = build_model(config, spec, process)
    model.module.train()
    step = build_step(config, process, model, build_optimizers(config, model, 1000))
    for number in range(WARM_UP):
        step([own if number else nothing], number, 0)
    return Case(sharding, lambda number: step([own], number, 0), PhaseClock(process.device))


def _figures(case: Case, number: int, per_host: int) -> dict[str, Any]:
    """Times of a case's steps, of the slowest process, and bytes of one more step, of the busiest."""
    with CollectiveRecorder(per_host) as recorder:
        case.step(number)
    sent = sum(each.sent for each in recorder.collectives)
    received = sum(each.received for each in recorder.collectives)
    own = {clock: _median(case.times, clock) for clock in CLOCKS} | {"sent": sent, "received": received}
    of_ranks = gather_objects(own)
    low, _, high = statistics.quantiles([each["seconds"] for each in case.times], n=4)
    names = {phase for each in case.phases for phase in each}
    return {
        **{key: max(each[key] for each in of_ranks) for key in own},
        "middle_half": [low, high],
        "phases": {phase: statistics.median(each.get(phase, 0.0) for each in case.phases) for phase in sorted(names)},
    }


def _median(times: Sequence[dict[str, float]], clock: str) -> float:
    return statistics.median(each[clock] for each in times)


def measure_processes(
    hosts: int, each: int, rows_each: int, steps: int, shapes: Sequence[str], network: str | None = None
) -> dict[str, Any]:
    """Measure on processes of this machine.

    Args:
        hosts: number of hosts that the processes take themselves to be on.
        each: number of processes on each of them.
        rows_each: rows of a batch on each process.
        steps: number of turns.
        shapes: names of the tables' shapes.
        network: rate of the network between two hosts of one process; all are joined by loopback without.
    """
    count = hosts * each
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        places: list[tuple[list[str], dict[str, str]]] = [([], {"MASTER_ADDR": "127.0.0.1"})] * count
        if network is not None:
            places = stack.enter_context(slow_network(network, count))
        with socket.socket() as free:
            free.bind(("", 0))
            port = str(free.getsockname()[1])
        workers = []
        for rank, (before, variables) in enumerate(places):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_RANK": str(rank % each),
                "LOCAL_WORLD_SIZE": str(each),
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
                **variables,
            }
            arguments = ["--rows", str(rows_each), "--steps", str(steps), "--output", f"{folder}/found.json", *shapes]
            line = [*before, sys.executable, "-m", "benchmarks.scaling_measured", *arguments]
            workers.append(subprocess.Popen(line, env=environment))
        try:
            failed = [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        if any(failed):
            raise RuntimeError(f"processes of the measurement ended with exit codes {failed}")
        found: dict[str, Any] = json.loads(Path(folder, "found.json").read_text())
        return found


@contextmanager
def slow_network(rate: str, count: int) -> Iterator[list[tuple[list[str], dict[str, str]]]]:
    """Two network namespaces, joined by a link of ``rate`` (such as ``100mbit``) in each direction.

    Yields what precedes the command of each process, and its environment variables.

    Raises:
        SystemExit: the system does not permit it.
    """
    if count != 2:
        raise SystemExit("--network: joins two processes")
    names = [f"scaling{os.getpid()}{side}" for side in "ab"]
    devices = [f"sc{os.getpid() % 100000}{side}" for side in "ab"]

    def ip(*arguments: str) -> None:
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"--network {rate}: {' '.join(arguments)}: {done.stderr.strip()}")

    try:
        for name in names:
            ip("ip", "netns", "add", name)
        ip(
            "ip",
            "link",
            "add",
            devices[0],
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            devices[1],
            "netns",
            names[1],
        )
        for number, (name, device) in enumerate(zip(names, devices, strict=True)):
            inside = ("ip", "netns", "exec", name)
            ip(*inside, "ip", "address", "add", f"10.213.7.{number + 1}/24", "dev", device)
            ip(*inside, "ip", "link", "set", device, "up")
            ip(*inside, "ip", "link", "set", "lo", "up")
            ip(
                *inside,
                "tc",
                "qdisc",
                "add",
                "dev",
                device,
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                "64kb",
                "latency",
                "400ms",
            )
        yield [
            (["ip", "netns", "exec", name], {"MASTER_ADDR": "10.213.7.1", "GLOO_SOCKET_IFNAME": device})
            for name, device in zip(names, devices, strict=True)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def main() -> None:
    """Measure as one of the processes that :func:`measure_processes` starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--output", type=Path)
    parser.add_argument("shapes", nargs="+")
    arguments = parser.parse_args()
    with process_group(patience=None) as process:
        found = measure_here(process, arguments.rows, arguments.steps, arguments.shapes)
        compat.set_host_groups(None, None)
        if process.is_main:
            arguments.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
