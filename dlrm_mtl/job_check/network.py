"""Measurements between the processes of a job: collectives, pairs, clocks. Every process must call each function."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dlrm_mtl.core.processes import Process, gather_objects

SIZES = (4 << 10, 64 << 10, 1 << 20, 8 << 20)
"""Sizes of messages between two processes in bytes; a slow pair is spared the larger ones."""
REPEATS = 3
"""Round trips per size, of which the fastest one counts."""
TRIP_SECONDS = 0.2
"""Expected seconds of a round trip above which a size is left out, and of a collective above which it is not repeated."""
SECONDS = 6.0
"""Seconds after which no further pairs are measured."""
COLLECTIVE_BYTES = 4 << 20
"""Bytes that a process sends in the timed collectives."""
SLOW = 4.0
"""Factor by which a host is slower than the others when it is called a problem."""


@dataclass(frozen=True)
class Pair:
    """Two processes, by rank, and the connection between them."""

    ranks: tuple[int, int]
    latency: float
    """Seconds of a small message, one way."""
    bandwidth: float
    """Bytes per second, one way, of the largest messages."""


@dataclass(frozen=True)
class Collectives:
    """Bytes per second that a process sends in collectives, and a sentence if their results are wrong."""

    all_to_all: float
    all_reduce: float
    problem: str = ""


def check_collectives(process: Process) -> Collectives:
    """Time an all-to-all and an all-reduce on the device of training, after checking their results."""
    ranks, rank = process.world_size, process.rank
    sent = torch.arange(ranks, device=process.device) + rank * ranks
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    summed = sent.clone()
    dist.all_reduce(summed)
    others = torch.arange(ranks, device=process.device)
    wrong = []
    if not torch.equal(received, others * ranks + rank):
        (at,) = torch.where(received != others * ranks + rank)
        wrong.append(f"the all-to-all brought process {rank} wrong values from process {int(at[0])}")
    if not torch.equal(summed, others * ranks + ranks * ranks * (ranks - 1) // 2):
        wrong.append(f"the all-reduce gave process {rank} a wrong sum")
    found = [text for texts in gather_objects(wrong) for text in texts]
    content = torch.zeros(max(1, COLLECTIVE_BYTES // ranks) * ranks, dtype=torch.uint8, device=process.device)
    out = torch.empty_like(content)
    sent_bytes = content.numel() * (ranks - 1) / ranks
    return Collectives(
        sent_bytes / _seconds(lambda: dist.all_to_all_single(out, content), process),
        2 * sent_bytes / _seconds(lambda: dist.all_reduce(content), process),
        found[0] if found else "",
    )


def _seconds(action: Callable[[], object], process: Process) -> float:
    """Seconds of the fastest of a few calls, on the slowest process."""
    best = float("inf")
    for _ in range(REPEATS):
        dist.barrier()
        begun = time.perf_counter()
        action()
        if process.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, max(gather_objects(time.perf_counter() - begun)))
        if best > TRIP_SECONDS:
            break
    return best


def measure_pairs(process: Process, seconds: float = SECONDS) -> list[Pair]:
    """Connections between processes, by messages between CPUs, on every process.

    In each round every process is measured with another one, all at the same time. All pairs have their turn, or as many as
    fit into ``seconds``.
    """
    found: list[Pair] = []
    begun = time.monotonic()
    for partners in rounds(process.world_size):
        partner = partners.get(process.rank)
        pair = None if partner is None else _measure(process.rank, partner)
        found += [pair for pair in gather_objects(pair) if pair is not None]
        spent = torch.tensor([time.monotonic() - begun])
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        if spent.item() > seconds:
            break
    return found


def rounds(count: int) -> Iterator[dict[int, int]]:
    """Rounds of disjoint pairs, as ``{rank: partner}``, in which each of ``count`` ranks meets every other one once."""
    places = list(range(count)) + ([-1] if count % 2 else [])
    for _ in range(len(places) - 1):
        half = len(places) // 2
        met = zip(places[:half], reversed(places[half:]), strict=True)
        both = [(one, other) for one, other in met if min(one, other) >= 0]
        yield dict(both) | {other: one for one, other in both}
        places.insert(1, places.pop())


def _measure(rank: int, partner: int) -> Pair | None:
    """Connection to ``partner``; None on the process of the higher rank."""
    leads = rank < partner
    _round_trip(leads, partner, torch.zeros(1, dtype=torch.uint8))
    latency = trip = 0.0
    size = SIZES[0]
    for number, size in enumerate(SIZES):
        message = torch.zeros(size, dtype=torch.uint8)
        trip = min(_round_trip(leads, partner, message) for _ in range(REPEATS))
        latency = latency or trip / 2
        following = SIZES[number + 1] if number + 1 < len(SIZES) else float("inf")
        more = torch.tensor([trip * following / size < TRIP_SECONDS])
        dist.send(more, partner) if leads else dist.recv(more, partner)
        if not more.item():
            break
    return Pair((rank, partner), latency, 2 * size / trip) if leads else None


def _round_trip(leads: bool, partner: int, message: torch.Tensor) -> float:
    begun = time.perf_counter()
    if leads:
        dist.send(message, partner)
        dist.recv(message, partner)
    else:
        dist.recv(message, partner)
        dist.send(message, partner)
    return time.perf_counter() - begun


def clock_offsets(process: Process, ranks: Sequence[int]) -> dict[int, float]:
    """Seconds by which the clocks of ``ranks`` are ahead of that of the first process, on that process; elsewhere empty."""
    offsets: dict[int, float] = {}
    told = torch.zeros(1, dtype=torch.float64)
    for other in ranks:
        if other == 0 or process.rank not in (0, other):
            continue
        trips: list[tuple[float, float]] = []
        for _ in range(REPEATS):
            if process.rank == 0:
                sent = time.time()
                dist.send(told, other)
                dist.recv(told, other)
                received = time.time()
                trips.append((received - sent, told.item() - (sent + received) / 2))
            else:
                dist.recv(told, 0)
                told[0] = time.time()
                dist.send(told, 0)
        if trips:
            offsets[other] = min(trips)[1]
    return {0: 0.0, **offsets} if process.rank == 0 else {}


def best_links(pairs: Sequence[Pair], hosts: Sequence[str]) -> dict[str, float]:
    """Bandwidth of every host's fastest pair with another host.

    One slow host slows the pairs of all others with it, but not their fastest ones.

    Args:
        pairs: measured pairs.
        hosts: host of each rank.
    """
    best: dict[str, float] = {}
    for pair in pairs:
        ends = {hosts[rank] for rank in pair.ranks}
        for host in ends if len(ends) == 2 else ():
            best[host] = max(best.get(host, 0.0), pair.bandwidth)
    return best


def slow_host(best: Mapping[str, float]) -> tuple[str, float] | None:
    """The slowest of at least three hosts, and how many times slower it is than the median of the others."""
    if len(best) < 3:
        return None
    slowest = min(best, key=lambda host: best[host])
    return slowest, statistics.median(value for host, value in best.items() if host != slowest) / best[slowest]
