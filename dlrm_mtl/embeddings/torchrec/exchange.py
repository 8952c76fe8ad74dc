"""Exchange of ids between the processes: from those that read the rows of a batch to those that hold the rows of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dlrm_mtl.core.phases import phase


class Exchanging:
    """Part of a sharded collection: its lookup, with the exchanges of ids and of vectors as phases of a step."""

    arrived: tuple[Any, Any] | None = None
    """TorchRec's context and the ids for the next lookup, which then exchanges none; used once."""

    def forward(self: Any, features: Any) -> Any:
        """Look up ``features``; returns TorchRec's awaitable of the vectors."""
        if self.arrived is not None:
            (context, ids), self.arrived = self.arrived, None
        else:
            context = self.create_context()
            with phase("input exchange"):
                ids = self.input_dist(context, features).wait().wait()
        with phase("output exchange"):
            return self.compute_and_output_dist(context, ids)


class ExchangeAhead:
    """Exchange of the ids of one batch ahead of its lookup, while other work goes on.

    All processes must make the same calls in the same order between their other collective operations: these start in the
    calling thread, so that they need no process group of their own.
    """

    def __init__(self) -> None:
        self._moving: list[tuple[Any, Any, Any]] = []  # collection, TorchRec's context, awaitable

    def start(self, inputs: Sequence[tuple[nn.Module, Any]]) -> None:
        """Start with the numbers of ids, given collections with the features to look up in them."""
        with phase("input exchange"):
            for collection, features in inputs:
                part: Any = collection
                context = part.create_context()
                self._moving.append((part, context, part.input_dist(context, features)))

    def send(self) -> None:
        """Send the ids, once the numbers of ids have arrived."""
        with phase("input exchange"):
            self._moving = [(part, context, numbers.wait()) for part, context, numbers in self._moving]

    def deliver(self) -> None:
        """Let the next lookups use the ids, once they have arrived."""
        with phase("input exchange"):
            for part, context, ids in self._moving:
                part.arrived = (context, ids.wait())
        self._moving = []

    def drop(self) -> None:
        """Wait for what is on its way, and forget it."""
        for _, _, ids in self._moving:
            ids.wait()
        self._moving = []
