"""Planner: the sharding type and the processes of every table, by the cost model.

Each table has some cuts (:mod:`dlrm_mtl.scaling.options`). For a limit to the time of a single piece, and a set of types in
use, the best cut of each table is the one with the smallest mean time over the processes. Many limits and sets give many
choices of cuts; those with the smallest lower bound of the step's time are packed greedily, the largest table first
(:mod:`dlrm_mtl.scaling.packing`). Then every table in turn may move or change its cut, and pairs of tables may exchange
their processes, while that shortens the step. The result depends on nothing but the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from dlrm_mtl.core.memory import size_text
from dlrm_mtl.scaling.hardware import Hardware
from dlrm_mtl.scaling.options import KINDS, Cut, CutCosts
from dlrm_mtl.scaling.packing import Packing, Spot
from dlrm_mtl.scaling.placement import Placed, cut
from dlrm_mtl.scaling.tables import Load

LIMITS = 12
"""Numbers of limits to the time of a piece."""
PACKED = 8
"""Number of choices of cuts that are packed."""
REFINED = 3
"""Number of packings that are improved."""
SWEEPS = 4
"""Largest number of times that every table may move."""
SWAPS = 50
"""Largest number of exchanges."""


class NoRoomError(Exception):
    """No placement fits into memory.

    Args:
        table: the table that found no place.
        needed: bytes that it needs on one process, at least.
        free: bytes that the emptiest process has left, after the other tables.
        room: bytes of a process for tables.
        total: bytes of all tables with their state, once.
    """

    def __init__(self, table: str, needed: float, free: float, room: float, total: float) -> None:
        super().__init__(
            f"table {table} needs {size_text(round(needed))} of a process; the emptiest has {size_text(round(free))} left"
        )
        self.table, self.needed, self.free, self.room, self.total = table, needed, free, room, total


@dataclass
class _State:
    """Tables while they are placed."""

    packing: Packing
    spots: list[Spot | None]
    users: dict[tuple[str, bool], int] = field(default_factory=dict)
    """Number of tables of each type and collection."""


class Planner:
    """Planner of one load on one cluster.

    Args:
        hardware: figures of a host and its network.
        load: what a step does.
        cuts: possible cuts of every table, by name.
        world_size: number of processes.
        per_host: number of processes of a host.
        room: bytes of a process for tables.
        progress: called with the numbers of done and of all units of work.
    """

    def __init__(
        self,
        hardware: Hardware,
        load: Load,
        cuts: Mapping[str, Sequence[Cut]],
        world_size: int,
        per_host: int,
        room: float,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.costs = CutCosts(hardware, load, world_size, per_host)
        self.load, self.world_size, self.per_host, self.room = load, world_size, per_host, room
        self.options = [[self.costs.pieces(table, each) for each in cuts[table.name]] for table in load.tables]
        self._progress = progress

    def plan(self) -> dict[str, Placed]:
        """The placement of every table.

        Raises:
            NoRoomError: the tables do not fit into the memory of the processes.
        """
        if not self.load.tables:
            return {}
        choices = self._choices()
        total = len(choices) + REFINED * SWEEPS + 1
        packed, failure = [], None
        for done, choice in enumerate(choices):
            self._progress(done, total)
            try:
                packed.append(self._pack(choice))
            except NoRoomError as error:
                failure = error
        if not packed:
            try:
                packed.append(self._pack(self._smallest(), by_memory=True))
            except NoRoomError:
                raise (failure or AssertionError("there are no choices")) from None
        packed.sort(key=self._time)
        for number, state in enumerate(packed[:REFINED]):
            self._refine(state, len(choices) + number * SWEEPS, total)
        best = min(packed[:REFINED], key=self._time)
        self._progress(total, total)
        return {
            table.name: self._placed(table.rows, table.dim, spot)
            for table, spot in zip(self.load.tables, best.spots, strict=True)
            if spot is not None
        }

    def _time(self, state: _State) -> float:
        return state.packing.time + sum(self.costs.overhead(*key) for key, users in state.users.items() if users)

    def _choices(self) -> list[list[int]]:
        """Choices of one option for every table, the most promising first."""
        width = max(len(options) for options in self.options)
        largest, mean, shared = (np.full((len(self.options), width), np.inf) for _ in range(3))
        kinds = np.full((len(self.options), width), -1)
        for row, options in enumerate(self.options):
            for column, pieces in enumerate(options):
                largest[row, column], mean[row, column] = pieces.largest, pieces.mean / self.world_size
                shared[row, column] = pieces.shared
                kinds[row, column] = KINDS.index(pieces.cut.type)
        whole = shared + mean
        forced = {int(kinds[row, 0]) for row in range(len(kinds)) if len(set(kinds[row][kinds[row] >= 0])) == 1}
        free = sorted({int(kind) for kind in kinds[kinds >= 0]} - forced)
        spread = largest[np.isfinite(largest) & (largest > 0)]
        limits = [np.inf]
        if len(spread):
            low, high = max(float(whole.min(axis=1).sum()), float(spread.min())), float(spread.max())
            limits += np.geomspace(low, max(high, low), LIMITS).tolist() if high > low else []
        pooled = np.array([table.pooled for table in self.load.tables])
        over = {
            limit: np.where(largest > limit, 1e3 * largest, 0.0) for limit in limits
        }  # out of the question if avoidable
        found: dict[tuple[int, ...], float] = {}
        rows = np.arange(len(self.options))
        for size in range(len(free) + 1):
            for extra in combinations(free, size):
                allowed = np.isin(kinds, list(forced | set(extra)))
                if not allowed.any(axis=1).all():
                    continue
                for limit in limits:
                    cost = np.where(allowed, whole + over[limit], np.inf)
                    choice = cost.argmin(axis=1)
                    key = tuple(choice.tolist())
                    if key in found:
                        continue
                    used = {(KINDS[kind], bool(p)) for kind, p in zip(kinds[rows, choice], pooled, strict=True)}
                    bound = float(shared[rows, choice].sum()) + sum(self.costs.overhead(*each) for each in used)
                    found[key] = bound + max(float(mean[rows, choice].sum()), float(largest[rows, choice].max()))
        return [list(key) for key in sorted(found, key=lambda key: (found[key], key))[:PACKED]]

    def _smallest(self) -> list[int]:
        """For every table, the option with the least memory on one process."""
        return [int(np.argmin([pieces.memory.max() for pieces in options])) for options in self.options]

    def _pack(self, choice: Sequence[int], by_memory: bool = False) -> _State:
        """Place every table by its chosen option, or by another one if there is no room, the largest first."""
        state = _State(Packing(self.world_size, self.per_host, self.room), [None] * len(choice))
        chosen = [options[index] for options, index in zip(self.options, choice, strict=True)]
        times = [pieces.largest for pieces in chosen]
        sizes = [float(pieces.memory.max()) for pieces in chosen]
        all_time = sum(pieces.mean for pieces in chosen) / self.world_size or 1.0
        keys = [
            (chosen[n].target == "all", size / self.room if by_memory else max(time / all_time, size / self.room))
            for n, (time, size) in enumerate(zip(times, sizes, strict=True))
        ]
        for number in sorted(range(len(choice)), key=lambda n: keys[n], reverse=True):
            spot = state.packing.spot(chosen[number])
            if spot is None:
                spot = self._best(state, number)
            if spot is None:
                raise self._no_room(state, number)
            self._put(state, number, spot)
        return state

    def _no_room(self, state: _State, number: int) -> NoRoomError:
        needed = min(float(pieces.memory.max()) for pieces in self.options[number])
        smallest = [
            min(float(o.memory.sum()) * (o.number if o.target != "all" else 1) for o in own) for own in self.options
        ]
        free = self.room - float(state.packing.memory.min())
        return NoRoomError(self.load.tables[number].name, needed, free, self.room, sum(smallest))

    def _put(self, state: _State, number: int, spot: Spot) -> None:
        state.packing.put(spot)
        state.spots[number] = spot
        key = spot.pieces.cut.type, self.load.tables[number].pooled
        state.users[key] = state.users.get(key, 0) + 1

    def _take(self, state: _State, number: int) -> Spot:
        spot = state.spots[number]
        assert spot is not None
        state.packing.put(spot, -1)
        state.spots[number] = None
        state.users[spot.pieces.cut.type, self.load.tables[number].pooled] -= 1
        return spot

    def _best(self, state: _State, number: int) -> Spot | None:
        """The best place for a table under any of its options; None if there is none."""
        best, cost = None, np.inf
        pooled = self.load.tables[number].pooled
        for pieces in self.options[number]:
            spot = state.packing.spot(pieces)
            if spot is None:
                continue
            key = pieces.cut.type, pooled
            whole = spot.cost + (0.0 if state.users.get(key) else self.costs.overhead(*key))
            if whole < cost:
                best, cost = spot, whole
        return best

    def _refine(self, state: _State, done: int, total: int) -> None:
        """Let tables move, change their cut, and exchange places, while that shortens the step."""
        sizes = [max(pieces.mean for pieces in options) for options in self.options]
        order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
        for sweep in range(SWEEPS):
            self._progress(done + sweep, total)
            before = self._time(state)
            for number in order:
                whole = self._time(state)
                old = self._take(state, number)
                spot = self._best(state, number)
                self._put(state, number, spot if spot is not None else old)
                if self._time(state) > whole:
                    self._take(state, number)
                    self._put(state, number, old)
            for _ in range(SWAPS):
                swap = state.packing.best_swap(state.spots)
                if swap is None:
                    break
                first, rank, second, other = swap
                one, two = self._take(state, first), self._take(state, second)
                self._put(state, first, Spot(one.pieces, (other,), one.cost))
                self._put(state, second, Spot(two.pieces, (rank,), two.cost))
            if self._time(state) > before * (1 - 1e-6):
                break

    def _placed(self, rows: int, columns: int, spot: Spot) -> Placed:
        kind, parts = spot.pieces.cut.type, spot.pieces.cut.columns
        if kind == "row_wise":
            return cut(kind, rows, columns, range(self.world_size), 1, self.per_host)
        targets = list(spot.targets)
        if spot.pieces.target == "host":
            targets = [host * self.per_host for host in targets]
        return cut(kind, rows, columns, targets, parts, self.per_host)


def plan_tables(
    hardware: Hardware,
    load: Load,
    cuts: Mapping[str, Sequence[Cut]],
    world_size: int,
    per_host: int,
    room: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Placed]:
    """The placement of every table; arguments as of :class:`Planner`.

    Raises:
        NoRoomError: the tables do not fit into the memory of the processes.
    """
    return Planner(hardware, load, cuts, world_size, per_host, room, progress).plan()
