"""Proposals of plans for many tables: TorchRec's greedy search in as many steps for any number of tables."""

from __future__ import annotations

import heapq
from collections import defaultdict

from torchrec.distributed.planner.proposers import UniformProposer
from torchrec.distributed.planner.types import Enumerator, Proposer, ShardingOption, Topology

MANY_TABLES = 100
"""Number of tables above which these proposals take the place of TorchRec's."""
STEPS = 16
"""Number of steps of a search."""


class GreedySteps(Proposer):
    """The sequence of TorchRec's ``GreedyProposer``, of which only about :data:`STEPS` plans are proposed.

    The search begins with the fastest sharding of each table, and changes the largest table that has another one to its next
    one, again and again. TorchRec proposes, and rates, the whole plan after each change, which takes the square of the number
    of tables: minutes for 1,000.

    Args:
        use_depth: sort the shardings of a table by the time of the slowest shard; otherwise by the sum over shards.
    """

    def __init__(self, use_depth: bool) -> None:
        self._total = max if use_depth else sum
        self._options: dict[str, list[ShardingOption]] = {}
        self._places: dict[str, int] = {}
        self._largest: list[tuple[tuple[int, ...], int, str]] = []
        self._changes = 1
        self._ended = False

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        """Begin with all shardings of all tables."""
        options = defaultdict(list)
        for option in search_space:
            options[option.fqn].append(option)
        for some in options.values():
            some.sort(key=lambda option: self._total(shard.perf.total for shard in option.shards if shard.perf))
        self._options, self._places = dict(options), dict.fromkeys(options, 0)
        self._changes = max(1, sum(len(some) - 1 for some in options.values()) // STEPS)
        self._largest = []
        for number, name in enumerate(options):
            self._consider(number, name)
        self._ended = not options

    def propose(self) -> list[ShardingOption] | None:
        """The next plan; None after the last one."""
        if self._ended:
            return None
        return [self._options[name][place] for name, place in self._places.items()]

    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Change the shardings of the largest tables, whatever the plan's rating."""
        self._ended = not self._largest
        for _ in range(self._changes):
            if self._largest:
                _, number, name = heapq.heappop(self._largest)
                self._places[name] += 1
                self._consider(number, name)

    def _consider(self, number: int, name: str) -> None:
        """Let the table be changed, if it has another sharding."""
        place = self._places[name]
        if place + 1 < len(self._options[name]):
            stored = [shard.storage for shard in self._options[name][place].shards if shard.storage]
            hbm, ddr = [storage.hbm for storage in stored], [storage.ddr for storage in stored]
            size = (-max(hbm), -sum(hbm), -max(ddr), -sum(ddr))
            heapq.heappush(self._largest, (size, number, name))


def proposers(tables: int) -> list[Proposer] | None:
    """Searches for a plan of ``tables`` tables; None for TorchRec's own."""
    return None if tables <= MANY_TABLES else [GreedySteps(True), GreedySteps(False), UniformProposer()]
