"""Placement of pieces on processes: where each adds the least to the time of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.scaling.options import PARTS, Pieces

Array = NDArray[np.float64]

TIE = 1e-3
"""Weight of a process's own load beside the time of the step, so that pieces go to idle processes first."""


@dataclass(frozen=True)
class Spot:
    """A place for all pieces of a table."""

    pieces: Pieces
    targets: tuple[int, ...]
    """Process or host of each piece; empty for a table that is everywhere."""
    cost: float
    """Seconds of a step with it, without what is shared, and a little for the load of the processes."""


class Packing:
    """Load and memory of the processes while tables are placed.

    Args:
        world_size: number of processes.
        per_host: number of processes of a host.
        room: bytes of each process for tables.
    """

    def __init__(self, world_size: int, per_host: int, room: float) -> None:
        self.world_size, self.per_host, self.room = world_size, per_host, room
        self.seconds: Array = np.zeros((world_size, len(PARTS)))
        """[W, C] load of the processes."""
        self.memory: Array = np.zeros(world_size)
        """[W] bytes of tables."""
        self.shared = 0.0
        self._peaks: Array = np.zeros(len(PARTS))
        self._totals: Array = np.zeros(world_size)

    @property
    def time(self) -> float:
        """Seconds of the parts that depend on the placement: each waits for its slowest process."""
        return float(self._peaks.sum()) + self.shared

    def spot(self, pieces: Pieces) -> Spot | None:
        """The best place for ``pieces``; None if there is no room."""
        if pieces.target == "all":
            if (self.memory + pieces.memory > self.room).any():
                return None
            peaks = (self.seconds + pieces.seconds).max(axis=0)
            total = float(self._totals.mean()) + float(pieces.seconds.sum(axis=1).mean())
            return Spot(pieces, (), float(peaks.sum()) + pieces.shared + TIE * total)
        if pieces.target == "host":
            return self._on_hosts(pieces)
        return self._on_ranks(pieces)

    def _on_ranks(self, pieces: Pieces) -> Spot | None:
        own = pieces.seconds[0]
        cost = np.maximum(self.seconds + own, self._peaks).sum(axis=1) + TIE * (self._totals + own.sum())
        cost[self.memory + pieces.memory[0] > self.room] = np.inf
        if pieces.target == "ranks of a host":
            by_host = cost.reshape(-1, self.per_host)
            number = min(pieces.number, self.per_host)
            best = np.sort(by_host, axis=1)[:, :number]
            host = int(best.max(axis=1).argmin())
            ranks = host * self.per_host + np.argsort(by_host[host], kind="stable")[:number]
        elif pieces.number == 1:
            ranks = np.array([cost.argmin()])
        else:
            ranks = np.argsort(cost, kind="stable")[: min(pieces.number, self.world_size)]
        if not np.isfinite(cost[ranks]).all() or len(ranks) < pieces.number:
            return None
        peaks = np.maximum((self.seconds[ranks] + own).max(axis=0), self._peaks)
        ties = TIE * float((self._totals[ranks] + own.sum()).mean())
        return Spot(pieces, tuple(int(rank) for rank in ranks), float(peaks.sum()) + pieces.shared + ties)

    def _on_hosts(self, pieces: Pieces) -> Spot | None:
        by_host = self.seconds.reshape(-1, self.per_host, len(PARTS)) + pieces.seconds
        peaks = np.maximum(by_host.max(axis=1), self._peaks)
        loads = self._totals.reshape(-1, self.per_host).max(axis=1) + pieces.seconds.sum(axis=1).max()
        cost = peaks.sum(axis=1) + TIE * loads
        full = (self.memory.reshape(-1, self.per_host) + pieces.memory > self.room).any(axis=1)
        cost[full] = np.inf
        hosts = np.argsort(cost, kind="stable")[: pieces.number]
        if len(hosts) < pieces.number or not np.isfinite(cost[hosts]).all():
            return None
        ties = TIE * float(loads[hosts].mean())
        return Spot(pieces, tuple(int(h) for h in hosts), float(peaks[hosts].max(axis=0).sum()) + pieces.shared + ties)

    def put(self, spot: Spot, sign: int = 1) -> None:
        """Place a table there, or take it away with ``sign`` -1."""
        pieces = spot.pieces
        self.shared += sign * pieces.shared
        if pieces.target == "all":
            self.seconds += sign * pieces.seconds
            self.memory += sign * pieces.memory
        elif pieces.target == "host":
            for host in spot.targets:
                own = slice(host * self.per_host, (host + 1) * self.per_host)
                self.seconds[own] += sign * pieces.seconds
                self.memory[own] += sign * pieces.memory
        else:
            ranks = list(spot.targets)
            self.seconds[ranks] += sign * pieces.seconds[0]
            self.memory[ranks] += sign * pieces.memory[0]
        self._peaks = self.seconds.max(axis=0)
        self._totals = self.seconds.sum(axis=1)

    def best_swap(self, spots: Sequence[Spot | None]) -> tuple[int, int, int, int] | None:
        """The two single pieces whose exchange shortens the step most: table and process of each; None if none does.

        One of them is on a process that some part of the step waits for.
        """
        singles = [
            (number, spot.targets[0])
            for number, spot in enumerate(spots)
            if spot is not None and spot.pieces.target == "rank" and spot.pieces.number == 1
        ]
        if len(singles) < 2:
            return None
        numbers, ranks = np.array(singles).T
        chosen = [spots[number] for number in numbers]
        loads = np.stack([spot.pieces.seconds[0] for spot in chosen if spot is not None])
        sizes = np.array([spot.pieces.memory[0] for spot in chosen if spot is not None])
        order = np.argsort(-self.seconds, axis=0, kind="stable")[:3]  # [3, C]
        best, found = float(self._peaks.sum()) * (1 - 1e-9), None
        for rank in sorted(set(order[0].tolist())):
            rest = np.zeros_like(loads)
            for part in range(len(PARTS)):
                for place in order[::-1, part]:  # the largest that is on neither process wins
                    free = (place != rank) & (place != ranks)
                    rest[free, part] = self.seconds[place, part]
            for index in np.flatnonzero(ranks == rank):
                gain = loads - loads[index]
                here, there = self.seconds[rank] + gain, self.seconds[ranks] - gain
                cost = np.maximum(np.maximum(here, there), rest).sum(axis=1)
                fits = (self.memory[rank] - sizes[index] + sizes <= self.room) & (
                    self.memory[ranks] - sizes + sizes[index] <= self.room
                )
                cost[(ranks == rank) | ~fits] = np.inf
                other = int(cost.argmin())
                if cost[other] < best:
                    best = float(cost[other])
                    found = int(numbers[index]), int(rank), int(numbers[other]), int(ranks[other])
        return found
