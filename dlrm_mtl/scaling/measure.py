"""Measurement of this machine for :mod:`dlrm_mtl.scaling.hardware`: arithmetic, memory, and collectives on loopback."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dlrm_mtl.core.cores import available_cores
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import memory_bytes
from dlrm_mtl.core.schema import validate
from dlrm_mtl.scaling.cost import LINE
from dlrm_mtl.scaling.hardware import Hardware

REPEATS = 5
"""Number of times that each figure is measured; the quickest counts."""
ROW = 256
"""Bytes of a row at a random place."""
EXCHANGE = 8 << 20
"""Bytes of an exchange whose bandwidth is measured."""

STEP = {"cpu": 1e-3, "cuda": 2e-3}
"""Assumed fixed time of a step, which depends on the model."""
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
    figures = {key: median(float(each[key]) for each in found) for key in found[0]}
    host = memory_bytes()
    own = torch.cuda.get_device_properties(0).total_memory if gpus else host // processes
    content: dict[str, Any] = {
        "name": name,
        "device": device,
        "processes_per_host": processes,
        "memory_per_process": own,
        "memory_per_host": host,
        "matrix_product": {key: _round(figures[key]) for key in ("float32", "tf32", "bfloat16")},
        "streaming": _round(figures["streaming"]),
        "random_rows": _round(figures["random_rows"]),
        "within_host": {"bandwidth": _round(figures["bandwidth"]), "latency": _round(figures["latency"])},
        "between_hosts": {
            "bandwidth": NETWORK / processes,
            "latency": _round(figures["latency"] + NETWORK_LATENCY),
        },
        "overhead": {"step": STEP[device], "collective": 0.0, "kernel": _round(figures["kernel"])},
    }
    return validate(Hardware, content, name)


def as_yaml(hardware: Hardware) -> str:
    """The description as a YAML file."""
    product, overhead = hardware.matrix_product, hardware.overhead

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
within_host: {link(hardware.within_host)}  # an all-to-all over all processes
between_hosts: {link(hardware.between_hosts)}  # not measured: 10 Gb/s Ethernet; write your network's
overhead:
  step: {overhead.step * 1e3:.3g}ms  # assumed: dlrm-mtl profile shows that of a model
  collective: 0  # within the latencies above
  kernel: {overhead.kernel * 1e6:.3g}us
"""


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _work(rank: int, processes: int, device: str, folder: str) -> None:
    """Measure in one of the processes, and write the figures."""
    torch.set_num_threads(max(available_cores() // processes, 1))
    here = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(here)
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes
    )
    try:
        found = {**_arithmetic(here), **_memory(here), **_collectives(here, processes)}
        torch.save(found, Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Shortest time of ``work``, begun by all processes at the same time."""
    work()
    times = []
    for _ in range(REPEATS):
        dist.barrier()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _arithmetic(device: torch.device) -> dict[str, float]:
    found = {}
    for name, dtype, precision in (
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bfloat16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        size = 8192 if device.type == "cuda" else 256 if dtype == torch.bfloat16 else 1024  # some CPUs emulate bfloat16
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * size**3 / _seconds(lambda left=left, right=right: left @ right, device)  # type: ignore[misc]
    torch.set_float32_matmul_precision("highest")
    return found


def _memory(device: torch.device) -> dict[str, float]:
    size = 1 << (32 if device.type == "cuda" else 28)
    table = torch.zeros(size // ROW, ROW // 4, device=device)
    target = torch.empty_like(table)
    copied = _seconds(lambda: target.copy_(table), device)
    count = len(table) // 2
    rows = torch.randint(len(table), (count,), device=device)
    read = torch.empty(count, ROW // 4, device=device)
    gathered = _seconds(lambda: torch.index_select(table, 0, rows, out=read), device)
    one = rows[:1]
    kernel = _seconds(lambda: torch.index_select(table, 0, one), device)
    return {"streaming": 2 * size / copied, "random_rows": count * (ROW + LINE) / gathered, "kernel": kernel}


def _collectives(device: torch.device, processes: int) -> dict[str, float]:
    """Bandwidth and latency by the law of the cost model; a process alone exchanges nothing, at the speed of a copy."""
    if processes == 1:
        return {"bandwidth": 1e10, "latency": 1e-5}
    times = []
    for size in (processes * 8, EXCHANGE):
        sent = torch.zeros(size // 8 // processes * processes, dtype=torch.int64, device=device)
        received = torch.empty_like(sent)
        times.append(_seconds(lambda a=received, b=sent: dist.all_to_all_single(a, b), device))  # type: ignore[misc]
    small, large = times
    return {"bandwidth": EXCHANGE * (processes - 1) / processes / max(large - small, 1e-9), "latency": small}
