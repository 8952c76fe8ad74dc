"""Probes of a machine: short pieces of work, each repeated in turns, whose times give the figures of the cost model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dlrm_mtl.scaling.cost import LINE

ROW = 256
"""Bytes of a row at a random place."""
SIZES = {"cpu": 1 << 26, "cuda": 1 << 32}
"""Bytes of a table: more than caches hold."""
EXCHANGE = 8 << 20
"""Bytes of an exchange whose bandwidth is measured."""
GRADIENT_COLUMNS = 32
"""Columns of the gradient that is searched."""
PRODUCTS = (
    ("float32", torch.float32, "highest"),
    ("tf32", torch.float32, "high"),
    ("bfloat16", torch.bfloat16, "highest"),
)


@dataclass(frozen=True)
class Probe:
    """A piece of work; ``work`` is given the number of the turn."""

    name: str
    work: Callable[[int], object]


REPEATS = 2
"""Timed repetitions of a turn."""

Clocks = Mapping[str, Callable[[], float]]


def turn(probe: Probe, number: int, clocks: Clocks, repeats: int = REPEATS) -> list[dict[str, float]]:
    """Do the work of a probe once so that caches hold what it needs, and then ``repeats`` times; the seconds of the latter.

    All processes of the group begin each repetition at the same time.

    Args:
        probe: the probe.
        number: number of the turn.
        clocks: what is read before and after the work, by name.
        repeats: number of timed repetitions.
    """
    probe.work(number)
    return [timed(lambda: probe.work(number), clocks) for _ in range(repeats)]


def timed(work: Callable[[], object], clocks: Clocks) -> dict[str, float]:
    """Seconds of ``work`` by each of ``clocks``, begun by all processes of the group at the same time."""
    dist.barrier()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    before = {name: clock() for name, clock in clocks.items()}
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {name: clock() - before[name] for name, clock in clocks.items()}


def machine_probes(device: torch.device, processes: int) -> list[Probe]:
    """Probes of arithmetic, memory and collectives; for the latter, all processes of the group take their turns together."""
    probes = []
    for name, dtype, precision in PRODUCTS:
        left, right = (torch.randn(_side(dtype, device), _side(dtype, device), device=device).to(dtype) for _ in "ab")

        def multiply(
            _: int, left: torch.Tensor = left, right: torch.Tensor = right, precision: str = precision
        ) -> None:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(precision)
            torch.mm(left, right)
            torch.set_float32_matmul_precision(before)

        probes.append(Probe(name, multiply))
    size = SIZES[device.type]
    table = torch.zeros(size // ROW, ROW // 4, device=device)
    target = torch.zeros_like(table)
    rows = torch.randint(len(table), (len(table) // 2,), device=device)
    one = rows[:1]
    gradient = table.view(-1, GRADIENT_COLUMNS)
    probes += [
        Probe("streaming", lambda _: target.copy_(table)),
        Probe("random_rows", lambda _: torch.index_select(table, 0, rows, out=target[: len(rows)])),
        Probe("kernel", lambda _: torch.index_select(table, 0, one)),
        Probe("new_memory", lambda _: torch.zeros_like(table)),
        Probe("search", lambda _: (gradient != 0).any(dim=1).nonzero()),
    ]
    if processes > 1:
        for name, size in (("small", processes * 8), ("large", EXCHANGE)):
            sent = torch.zeros(size // 8 // processes * processes, dtype=torch.int64, device=device)
            received = torch.empty_like(sent)
            probes.append(Probe(name, lambda _, a=received, b=sent: dist.all_to_all_single(a, b)))  # type: ignore[misc]
    return probes


def machine_figures(seconds: Mapping[str, float], device: torch.device, processes: int) -> dict[str, float]:
    """Rates and latencies by the law of the cost model, from the times of :func:`machine_probes`.

    A process alone exchanges nothing, at the speed of a copy.
    """
    size = SIZES[device.type]
    found = {name: 2 * _side(dtype, device) ** 3 / seconds[name] for name, dtype, _ in PRODUCTS}
    found |= {
        "streaming": 2 * size / seconds["streaming"],
        "random_rows": size // ROW // 2 * (ROW + LINE) / seconds["random_rows"],
        "kernel": seconds["kernel"],
        "new_memory": size / seconds["new_memory"],
        "search": size / seconds["search"],
        "bandwidth": 1e10,
        "latency": 1e-5,
    }
    if processes > 1:
        small, large = seconds["small"], seconds["large"]
        found["bandwidth"] = EXCHANGE * (processes - 1) / processes / max(large - small, 1e-9)
        found["latency"] = small
    return found


def _side(dtype: torch.dtype, device: torch.device) -> int:
    """Rows and columns of the matrices; some CPUs emulate bfloat16."""
    return 8192 if device.type == "cuda" else 256 if dtype == torch.bfloat16 else 1024
