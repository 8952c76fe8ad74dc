"""Measurement of this machine for :mod:`dlrm_mtl.scaling.hardware`: arithmetic, memory, and collectives on loopback."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dlrm_mtl.core.cores import available_cores
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import keep_freed_memory, memory_bytes
from dlrm_mtl.core.processes import Process
from dlrm_mtl.core.schema import validate
from dlrm_mtl.scaling.hardware import Hardware
from dlrm_mtl.scaling.probes import ROW, machine_figures, machine_probes, turn
from dlrm_mtl.scaling.step_probe import WARM_UP, step_figures, step_probes

TURNS = 11
"""Number of times that the probes take their turns, one after the other; medians count."""
NETWORK = 1.25e9
"""Assumed bytes per second between hosts, 10 Gb/s Ethernet, which the processes of a host share."""
NETWORK_LATENCY = 50e-6
"""Assumed latency between hosts, beyond that within one."""


def measure_hardware(name: str, processes: int) -> Hardware:
    """Measure this machine with ``processes`` processes at work at the same time.

    Args:
        name: name of the hardware.
        processes: number of processes of a host; each has a GPU if there are any.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise UserError(
            f"--processes {processes}: this machine has {gpus} GPU(s); measure at most one process for each."
        )
    device = "cuda" if gpus else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        workers = [
            context.Process(target=_work, args=(rank, processes, device, folder), daemon=True)
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        failed = [worker.exitcode for worker in workers if worker.exitcode]
        if failed:
            raise RuntimeError(f"a measuring process ended with exit code {failed[0]}")
        found = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    seconds = {key: median(float(each[key]) for each in found) for key in found[0]}
    return describe(name, device, processes, seconds)


def describe(name: str, device: str, processes: int, seconds: Mapping[str, float]) -> Hardware:
    """This machine by the times of all probes, of the median process.

    Args:
        name: name of the hardware.
        device: ``cpu`` or ``cuda``.
        processes: number of processes of a host.
        seconds: time of each of :func:`~dlrm_mtl.scaling.probes.machine_probes` and
            :func:`~dlrm_mtl.scaling.step_probe.step_probes`, by name.
    """
    figures = machine_figures(seconds, torch.device(device), processes)
    figures |= step_figures(seconds, figures["kernel"], figures["latency"], processes)
    host = memory_bytes()
    own = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else host // processes
    content: dict[str, Any] = {
        "name": name,
        "device": device,
        "processes_per_host": processes,
        "memory_per_process": own,
        "memory_per_host": host,
        "matrix_product": {key: _round(figures[key]) for key in ("float32", "tf32", "bfloat16")},
        "streaming": _round(figures["streaming"]),
        "random_rows": _round(figures["random_rows"]),
        "new_memory": _round(figures["new_memory"]),
        "search": _round(figures["search"]),
        "within_host": {"bandwidth": _round(figures["bandwidth"]), "latency": _round(figures["latency"])},
        "between_hosts": {
            "bandwidth": NETWORK / processes,
            "latency": _round(figures["latency"] + NETWORK_LATENCY),
        },
        "overhead": {
            "step": _round(figures["step"]),
            "collective": _round(figures["collective"]),
            "kernel": _round(figures["kernel"]),
            "table": _round(figures["table"]),
        },
    }
    return validate(Hardware, content, name)


def as_yaml(hardware: Hardware) -> str:
    """The description as a YAML file."""
    product, overhead = hardware.matrix_product, hardware.overhead

    optional = "".join(
        f"{name}: {figure.rate / 1e9:.3g}GB/s\n"
        for name, figure in (("new_memory", hardware.new_memory), ("search", hardware.search))
        if figure is not None
    )

    def link(value: Any) -> str:
        return f"{{bandwidth: {value.bandwidth.rate / 1e9:.3g}GB/s, latency: {value.latency * 1e6:.3g}us}}"

    return f"""\
# Measured by dlrm-mtl hardware measure with {hardware.processes_per_host} process(es) at work at the same time.
name: {hardware.name}
device: {hardware.device}
processes_per_host: {hardware.processes_per_host}
memory_per_process: {hardware.memory_per_process}
memory_per_host: {hardware.memory_per_host}
matrix_product:
  float32: {product.float32.rate / 1e9:.3g}Gflop/s
  tf32: {product.tf32.rate / 1e9:.3g}Gflop/s
  bfloat16: {product.bfloat16.rate / 1e9:.3g}Gflop/s
streaming: {hardware.streaming.rate / 1e9:.3g}GB/s
random_rows: {hardware.random_rows.rate / 1e9:.3g}GB/s  # rows of {ROW} bytes
{optional}within_host: {link(hardware.within_host)}  # an all-to-all over all processes
between_hosts: {link(hardware.between_hosts)}  # not measured: 10 Gb/s Ethernet; write your network's
overhead:
  step: {overhead.step * 1e3:.3g}ms  # of a small model: dlrm-mtl profile shows that of yours
  collective: {overhead.collective * 1e6:.3g}us  # beyond the latencies above
  kernel: {overhead.kernel * 1e6:.3g}us
  table: {overhead.table * 1e6:.3g}us
"""


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _work(rank: int, processes: int, device: str, folder: str) -> None:
    """Measure in one of the processes, and write the median times of the probes."""
    torch.set_num_threads(max(available_cores() // processes, 1))
    keep_freed_memory()  # as training does
    here = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(here)
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    try:
        probes = machine_probes(here, processes) + step_probes(Process(rank, processes, here))
        clocks = {"seconds": time.perf_counter}
        for number in range(WARM_UP):
            for probe in probes:
                probe.work(number)
        times: dict[str, list[float]] = {probe.name: [] for probe in probes}
        for number in range(WARM_UP, WARM_UP + TURNS):
            for probe in probes:
                times[probe.name] += [each["seconds"] for each in turn(probe, number, clocks)]
        torch.save({name: median(own) for name, own in times.items()}, Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
