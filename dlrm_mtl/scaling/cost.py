"""Expected time of a training step from the work of its processes and the figures of the hardware.

The law. A step is a sequence of phases that nothing overlaps, and each ends for all processes when its slowest one is done,
because a collective follows:

    time = overhead + sum over phases of (largest over processes of the phase's time)

- ``ids``, ``pooled``, ``gradients``, ``step``, ``dense exchange``: the phase's collectives, one after the other.
- ``lookup``: ``(row_bytes_read + LINE * rows_read) / random_rows`` + ``kernels * overhead.kernel``. A row at a random place
  costs a memory line more than its bytes, so narrow rows are not free.
- ``dense part``: ``dense_flops / matrix_product + (dense_bytes + FEATURE_PASSES * feature_bytes) / streaming``, forward,
  backward and update. The looked-up vectors are read and written where their columns are put in order, read by the first
  layer, read again for the gradient of its weights, and their gradients are written, read, and written in the tables' order.
- ``overhead``: ``overhead.step + tables * overhead.table``, all of it the host's.
- ``whole gradients``: backward writes the gradient of a data-parallel table, mostly zeros, to new memory, DDP copies it to
  its bucket, and the update searches it for touched rows: ``gradient_bytes_made * (1 / new_memory + 2 / streaming) +
  gradient_bytes_searched / search``.
- ``row gradients``: in backward, the gradients of the rows read are gathered by row and added up:
  ``(row_bytes_read + LINE * rows_read) / random_rows + row_bytes_updated / streaming``.
- ``update``: the touched rows are read once for statistics, then read and written: ``3 * (row_bytes_updated + LINE *
  rows_updated) / random_rows`` + ``kernels * overhead.kernel``.

A collective over n processes, P of them on each host, takes ``overhead.collective`` + the latency of the slowest link that it
crosses + the larger of its two transfers, which run at the same time + ``2 b / streaming`` for an all_to_all, as what is
received, or what is sent back, is put in another order. With b = max(sent, received) bytes in the tensors of a
process (Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH", 2005, section 3 and 4,
without the cost of sums):

    =================  ======================  ==============================
    all_to_all         within a host           b (P - 1) / n
                       between hosts           b (n - P) / n
    all_gather,        within a host           b (P - 1) / P
    reduce_scatter     between hosts           b (hosts - 1) / n
    all_reduce         twice that of all_gather
    =================  ======================  ==============================

The second group is hierarchical: what leaves a host is shared equally by its processes. ``overhead.collective`` is the time
of the process itself: TorchRec's and autograd's work for it, and the backend's threads. Gloo, the backend of CPUs, has no
reduce_scatter: PyTorch copies the tensor to new memory, sums it by an all_reduce, and copies the own part from it.

A data loader that keeps up and the exchange of ids ahead of a step are not in the law; a step that overlaps its phases takes
less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlrm_mtl.scaling.hardware import Hardware, Precision
from dlrm_mtl.scaling.work import PHASES, Collective, RankWork, Span

LINE = 64
"""Bytes of a line of memory."""

FEATURE_PASSES = 7
"""Number of times that a step reads or writes the looked-up vectors or their gradients beside the exchange."""

PARTS = (
    "overhead",
    "ids",
    "lookup",
    "pooled",
    "dense part",
    "dense exchange",
    "gradients",
    "whole gradients",
    "row gradients",
    "update",
    "step",
)
"""Parts of a step, in its order."""

_OF_PHASE = {phase: "dense exchange" if phase == "dense" else phase for phase in PHASES}


@dataclass(frozen=True)
class Spread:
    """Distribution of a quantity over the processes."""

    largest: float
    mean: float
    slowest_rank: int
    """Process with the largest value; the first one of several."""

    @property
    def imbalance(self) -> float:
        """Largest over mean; 1 if every process has the same, or nothing."""
        return self.largest / self.mean if self.mean else 1.0


@dataclass(frozen=True)
class StepTime:
    """Expected time of a step in seconds."""

    parts: dict[str, float]
    """Time of each of :data:`PARTS`, of the slowest process in it."""
    slowest: dict[str, int]
    """Slowest process of each part."""
    of_ranks: list[float]
    """Time that each process is busy: the sum of its own parts, without waiting for others."""
    spreads: dict[str, Spread]
    """Balance of ``rows`` read, ``bytes`` sent and received, ``memory`` of tables, and busy ``time``."""

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return sum(self.parts.values())

    @property
    def bound(self) -> str:
        """Part that takes the largest time."""
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def waiting(self) -> float:
        """Part of the step that a process waits for slower ones, on average, in [0, 1)."""
        return max(1 - sum(self.of_ranks) / len(self.of_ranks) / self.total, 0.0) if self.total else 0.0

    @property
    def slowest_rank(self) -> int:
        """Process that is busy for the longest time."""
        return max(range(len(self.of_ranks)), key=lambda rank: self.of_ranks[rank])


def step_time(
    hardware: Hardware, works: Sequence[RankWork], hosts: int = 1, precision: Precision = "float32"
) -> StepTime:
    """Expected time of a step of ``len(works)`` processes, by the law above.

    Args:
        hardware: figures of a host and its network.
        works: work of each process, by rank; a host's processes are neighbours.
        hosts: number of hosts, each with the same number of processes.
        precision: of the dense part's matrix products.

    Raises:
        ValueError: there are no processes, or ``hosts`` does not divide their number.
    """
    if not works or len(works) % hosts:
        raise ValueError(f"hosts: {hosts} must divide the number of processes, {len(works)}")
    per_host = len(works) // hosts
    alike: dict[RankWork, dict[str, float]] = {}
    for work in works:
        if work not in alike:
            alike[work] = rank_parts(hardware, work, hosts, per_host, precision)
    of_ranks = [alike[work] for work in works]
    slowest = {part: max(range(len(works)), key=lambda rank: of_ranks[rank][part]) for part in PARTS}
    busy = [sum(parts.values()) for parts in of_ranks]
    spreads = {
        "rows": spread([work.rows_read for work in works]),
        "bytes": spread([sum(each.sent + each.received for each in work.collectives) for work in works]),
        "memory": spread([work.table_bytes + work.state_bytes for work in works]),
        "time": spread(busy),
    }
    return StepTime({part: of_ranks[slowest[part]][part] for part in PARTS}, slowest, busy, spreads)


def rank_parts(
    hardware: Hardware, work: RankWork, hosts: int, per_host: int, precision: Precision = "float32"
) -> dict[str, float]:
    """Seconds that one process is busy with each of :data:`PARTS`."""
    random, streaming, kernels = (
        hardware.random_rows.rate,
        hardware.streaming.rate,
        work.kernels * hardware.overhead.kernel,
    )
    parts = dict.fromkeys(PARTS, 0.0)
    parts["overhead"] = hardware.overhead.step + work.tables * hardware.overhead.table
    parts["lookup"] = (work.row_bytes_read + LINE * work.rows_read) / random + kernels
    parts["dense part"] = (
        work.dense_flops / hardware.matrix_product.rate(precision)
        + (work.dense_bytes + FEATURE_PASSES * work.feature_bytes) / streaming
    )
    parts["whole gradients"] = (
        work.gradient_bytes_made * hardware.seconds_per_new_byte + work.gradient_bytes_searched / hardware.search_rate
    )
    parts["row gradients"] = (work.row_bytes_read + LINE * work.rows_read) / random + work.row_bytes_updated / streaming
    parts["update"] = 3 * (work.row_bytes_updated + LINE * work.rows_updated) / random + kernels
    for collective in work.collectives:
        parts[_OF_PHASE[collective.phase]] += collective_time(hardware, collective, hosts, per_host)
    return parts


def collective_time(hardware: Hardware, collective: Collective, hosts: int, per_host: int) -> float:
    """Seconds of one collective by the table above; nothing for a single process, whose own copy is not counted."""
    across, near = _extent(collective.span, hosts, per_host)
    if across * near == 1:
        return 0.0
    copies = 2 * max(collective.sent, collective.received) / hardware.streaming.rate * (collective.kind == "all_to_all")
    if collective.kind == "reduce_scatter" and hardware.device == "cpu":
        collective = replace(collective, kind="all_reduce")
        copies = collective.sent * scatter_copies(hardware, across * near)
    inside, outside = traffic(collective, hosts, per_host)
    latency = hardware.between_hosts.latency if across > 1 else hardware.within_host.latency
    transfer = max(inside / hardware.within_host.bandwidth.rate, outside / hardware.between_hosts.bandwidth.rate)
    return hardware.overhead.collective + latency + copies + transfer


def scatter_copies(hardware: Hardware, processes: int) -> float:
    """Seconds for a byte of the input of a reduce_scatter by gloo: its copy to new memory, and that of the own part."""
    new = hardware.streaming.rate if hardware.new_memory is None else hardware.new_memory.rate
    return 1 / new + (1 + 2 / processes) / hardware.streaming.rate


def traffic(collective: Collective, hosts: int, per_host: int) -> tuple[float, float]:
    """Bytes of a process that pass a link within its host, and that leave the host, in the direction that carries more."""
    across, near = _extent(collective.span, hosts, per_host)
    processes = across * near
    size = max(collective.sent, collective.received)
    if collective.kind == "all_to_all":
        return size * (near - 1) / processes, size * (processes - near) / processes
    times = 2 if collective.kind == "all_reduce" else 1
    return times * size * (near - 1) / near, times * size * (across - 1) / processes


def _extent(span: Span, hosts: int, per_host: int) -> tuple[int, int]:
    """Hosts that a collective spans, and its processes on each of them."""
    return {"world": (hosts, per_host), "host": (1, per_host), "across_hosts": (hosts, 1)}[span]


def spread(values: Sequence[float]) -> Spread:
    """Distribution of ``values``, one for each process."""
    slowest = max(range(len(values)), key=lambda rank: values[rank])
    return Spread(float(values[slowest]), sum(values) / len(values), slowest)
