"""Ways to cut a table, and the time and memory that each piece of it takes on a process, by the law of the cost model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.embeddings.torchrec.plan import HOST_BASED
from dlrm_mtl.scaling.cost import LINE, scatter_copies
from dlrm_mtl.scaling.hardware import Hardware
from dlrm_mtl.scaling.placement import row_edges
from dlrm_mtl.scaling.tables import FLOAT, Load, TableLoad

Array = NDArray[np.float64]

PARTS = ("lookup", "ids", "pooled", "row gradients", "update", "step")
"""Parts of a step that depend on the placement; the gradients of pooled vectors are counted with them."""

KINDS = (
    "table_wise",
    "row_wise",
    "data_parallel",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)
"""All sharding types."""


@dataclass(frozen=True)
class Cut:
    """A sharding type, and the number of parts of the columns."""

    type: str
    columns: int = 1


@dataclass(frozen=True)
class Pieces:
    """Pieces of a table under one cut: all alike but for the rows that they hold."""

    cut: Cut
    target: Literal["rank", "host", "ranks of a host", "all"]
    """Where a piece goes: to any process; over all processes of any host; the pieces to processes of one host; everywhere."""
    number: int
    """Number of pieces, on different processes or hosts."""
    seconds: Array
    """[N, C] time of each of :data:`PARTS` on each process that a piece is spread over."""
    memory: Array
    """[N] bytes on each of these."""
    shared: float
    """Seconds that the table adds to a step wherever it is."""

    @property
    def largest(self) -> float:
        """Seconds of the busiest process of a piece."""
        return float(self.seconds.sum(axis=1).max())

    @property
    def mean(self) -> float:
        """Seconds of all pieces together."""
        return float(self.seconds.sum()) * (self.number if self.target != "all" else 1)


class CutCosts:
    """Times of cuts on given hardware.

    Args:
        hardware: figures of a host and its network.
        load: what a step does.
        world_size: number of processes.
        per_host: number of processes of a host.
    """

    def __init__(self, hardware: Hardware, load: Load, world_size: int, per_host: int) -> None:
        self.hardware, self.load, self.world_size, self.per_host = hardware, load, world_size, per_host
        self.hosts = world_size // per_host
        self._known: dict[tuple[str, int], tuple[Array, Array]] = {}
        inside, outside = hardware.within_host.bandwidth.rate, hardware.between_hosts.bandwidth.rate
        # Seconds per byte of the larger tensor, as in the law of the cost model.
        order = 2 / hardware.streaming.rate
        self._exchange = max((per_host - 1) / world_size / inside, (world_size - per_host) / world_size / outside)
        self._exchange += order * (world_size > 1)
        self._scatter = max((per_host - 1) / per_host / inside, (self.hosts - 1) / world_size / outside)
        self._scatter_host = (per_host - 1) / per_host / inside
        self._exchange_hosts = (self.hosts - 1) / self.hosts / outside + order * (self.hosts > 1)
        # A reduce_scatter and the all_gather that answers it.
        self._sums, self._sums_host = 2 * self._scatter, 2 * self._scatter_host
        if hardware.device == "cpu":
            self._sums += self._scatter + scatter_copies(hardware, world_size) * (world_size > 1)
            self._sums_host += self._scatter_host + scatter_copies(hardware, per_host) * (per_host > 1)
        single = world_size == 1
        self._far = (
            0.0
            if single
            else hardware.overhead.collective
            + (hardware.between_hosts.latency if self.hosts > 1 else hardware.within_host.latency)
        )
        self._near = 0.0 if per_host == 1 else hardware.overhead.collective + hardware.within_host.latency

    def overhead(self, kind: str, pooled: bool) -> float:
        """Seconds that the first table of a type in a collection adds to a step, for its collectives and kernels."""
        kernels = 2 * self.hardware.overhead.kernel
        times = self.load.micro_batches
        if kind == "data_parallel":
            return kernels + times * self._far
        back = self._far
        if pooled and kind in HOST_BASED:
            back = self._near + (self._far if self.hosts > 1 else 0.0)
        return kernels + times * (3 * self._far + 2 * back)

    def pieces(self, table: TableLoad, cut: Cut) -> Pieces:
        """The pieces of ``table`` under ``cut``."""
        if cut.type == "data_parallel":
            return self._replicated(table, cut)
        spread = {"row_wise": self.world_size, "table_row_wise": self.per_host, "grid_shard": self.per_host}
        parts = spread.get(cut.type, 1)
        edges = row_edges(table.rows, parts)
        lookups, distinct = self._spread(table, parts, edges)
        width = table.dim // cut.columns
        rows, features = self.load.rows, table.features
        random, streaming = self.hardware.random_rows.rate, self.hardware.streaming.rate
        row_bytes = float(self.load.state.row_bytes(width))
        seconds = np.zeros((parts, len(PARTS)))
        seconds[:, 0] = lookups * (width * FLOAT + LINE) / random
        seconds[:, 1] = (4 * features * rows + 8 * lookups) * self._exchange
        output = FLOAT * rows * features * width
        shared = 0.0
        if not table.pooled:
            seconds[:, 2] = 2 * FLOAT * lookups * width * self._exchange
        elif cut.type == "row_wise":
            shared = output * self._sums
        elif cut.type in HOST_BASED:
            seconds[:, 2] = output * (self._sums_host + 2 * self._exchange_hosts / self.per_host)
        else:
            seconds[:, 2] = 2 * output * self._exchange
        seconds[:, 3] = lookups * (width * FLOAT + LINE) / random + distinct * row_bytes / streaming
        seconds[:, 4] = 3 * distinct * (row_bytes + LINE) / random
        if cut.columns > 1 and self.world_size > 1:
            numbers = 2 * FLOAT * distinct * (self._scatter_host if cut.type == "table_column_wise" else self._scatter)
            seconds[:, 5] = self.load.row_reductions * (self._far + numbers)
        sizes = np.diff(edges)
        memory = sizes * width * FLOAT + self.load.state.held(sizes, width)
        target = _TARGETS.get(cut.type, "rank")
        return Pieces(cut, target, cut.columns, seconds, memory, shared)

    def _spread(self, table: TableLoad, parts: int, edges: NDArray[np.int64]) -> tuple[Array, Array]:
        if (table.name, parts) not in self._known:
            self._known[table.name, parts] = table.popularity.between(table.ids * self.load.rows, edges)
        return self._known[table.name, parts]

    def _replicated(self, table: TableLoad, cut: Cut) -> Pieces:
        lookups = table.ids * self.load.rows
        distinct = table.popularity.distinct(lookups)
        own = lookups / self.world_size * table.dim * FLOAT
        updated = distinct * float(self.load.state.row_bytes(table.dim))
        lines = LINE * (2 * lookups / self.world_size + 3 * distinct)
        random, streaming = self.hardware.random_rows.rate, self.hardware.streaming.rate
        seconds = (2 * own + 3 * updated + lines) / random + updated / streaming
        made = table.weight_bytes * self.load.micro_batches
        seconds += made * self.hardware.seconds_per_new_byte + table.weight_bytes / self.hardware.search_rate
        seconds += 2 * table.weight_bytes * self._scatter * self.load.micro_batches
        memory = 2.0 * table.weight_bytes + self.load.state.held(table.rows, table.dim, kept=0)
        return Pieces(cut, "all", 1, np.zeros((1, len(PARTS))), np.array([float(memory)]), seconds)


_TARGETS: dict[str, Literal["rank", "host", "ranks of a host", "all"]] = {
    "row_wise": "all",
    "table_row_wise": "host",
    "grid_shard": "host",
    "table_column_wise": "ranks of a host",
}


def possible_cuts(
    table: TableLoad, world_size: int, per_host: int, kinds: tuple[str, ...] = KINDS, columns: int | None = None
) -> list[Cut]:
    """Ways to cut ``table``, of the given types.

    The parts of the columns are equal and a multiple of 4 wide; their number is a power of two times a divisor of no more
    than 7, at most one for each process, process of a host, or host, or ``columns`` if given.
    """
    hosts = world_size // per_host
    limits = {"column_wise": world_size, "table_column_wise": per_host, "grid_shard": hosts}
    cuts = []
    for kind in kinds:
        if hosts == 1 and kind in ("table_row_wise", "grid_shard", "table_column_wise") and len(kinds) > 1:
            continue  # the same as row_wise or column_wise
        if kind not in limits:
            cuts.append(Cut(kind))
            continue
        numbers = [columns] if columns else [n for n in range(2, limits[kind] + 1) if table.dim % (4 * n) == 0]
        if kind == "grid_shard" and not columns:
            numbers = numbers or [1]
        cuts += [Cut(kind, number) for number in numbers]
    return cuts
