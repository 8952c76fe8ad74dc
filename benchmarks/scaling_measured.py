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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.scaling_cases import SHAPES, TYPES, configure, draw_batch
from dlrm_mtl.core.phases import PhaseClock
from dlrm_mtl.core.processes import Process, gather_objects, process_group
from dlrm_mtl.embeddings.torchrec import compat
from dlrm_mtl.embeddings.torchrec.plan import HOST_BASED
from dlrm_mtl.scaling.record import CollectiveRecorder
from dlrm_mtl.scaling.simulate_rows import empty, part_of
from dlrm_mtl.training.build import build_model, build_optimizers, build_step, quieten

WARM_UP = 3
LARGE = 4 << 20
"""Bytes of the exchange that tells the bandwidth."""


def measure_here(process: Process, rows_each: int, steps: int, shapes: Sequence[str]) -> dict[str, Any]:
    """Measure steps on the processes of this job; every process calls it, and all get the figures."""
    quieten()
    torch.set_num_threads(1)
    world = process.world_size
    per_host = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    cases = []
    for name in shapes:
        shape = SHAPES[name]
        batch = draw_batch(shape, rows_each * world)
        own = part_of(batch, process.rank, world).to(process.device)
        for sharding in TYPES:
            if world == per_host and sharding in (*HOST_BASED, "table_column_wise"):
                continue  # the same as row_wise and column_wise
            config, spec = configure(shape, rows_each * world, world, sharding, per_host)
            model = build_model(config, spec, process)
            model.module.train()
            optimizers = build_optimizers(config, model, 1000)
            step = build_step(config, process, model, optimizers)
            for number in range(WARM_UP):
                step([own if number else empty(batch, rows_each).to(process.device)], number, 0)
            seconds = []
            with PhaseClock(process.device) as clock:
                for number in range(steps):
                    dist.barrier()
                    started = time.perf_counter()
                    step([own], WARM_UP + number, 0)
                    seconds.append(time.perf_counter() - started)
                phases = {phase: spent / steps for phase, spent in clock.take().items()}
            with CollectiveRecorder(per_host) as recorder:
                step([own], WARM_UP + steps, 0)
            sent = sum(each.sent for each in recorder.collectives)
            received = sum(each.received for each in recorder.collectives)
            of_ranks = gather_objects((statistics.median(seconds), sent, received))
            low, _, high = statistics.quantiles(seconds, n=4)
            cases.append(
                {
                    "shape": name,
                    "sharding": sharding,
                    "processes": world,
                    "hosts": world // per_host,
                    "rows": rows_each * world,
                    "seconds": max(each[0] for each in of_ranks),
                    "middle_half": [low, high],
                    "phases": phases,
                    "sent": max(each[1] for each in of_ranks),
                    "received": max(each[2] for each in of_ranks),
                }
            )
            del model, optimizers, step
    return {"processes": world, "hosts": world // per_host, "link": link(process), "cases": cases}


def link(process: Process) -> dict[str, float]:
    """Latency in seconds of an all-to-all without data, and bytes per second of one with, in one direction."""
    if process.world_size == 1:
        return {}

    def seconds(size: int) -> float:
        given, got = (torch.zeros(size * process.world_size, dtype=torch.uint8, device=process.device) for _ in "io")
        found = []
        for _ in range(7):
            dist.barrier()
            started = time.perf_counter()
            dist.all_to_all_single(got, given)
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    quick = seconds(8)
    slow = seconds(LARGE // process.world_size)
    others = LARGE // process.world_size * (process.world_size - 1)
    figures = torch.tensor([quick, others / max(slow - quick, 1e-9)])
    dist.all_reduce(figures)
    latency, bandwidth = (figures / process.world_size).tolist()
    return {"latency": latency, "bandwidth": bandwidth}


def measure_processes(
    count: int, rows_each: int, steps: int, shapes: Sequence[str], network: str | None = None
) -> dict[str, Any]:
    """Measure on ``count`` processes of this machine, joined by loopback or by a network of the rate ``network``."""
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
                "LOCAL_RANK": "0" if network else str(rank),
                "LOCAL_WORLD_SIZE": "1" if network else str(count),
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
