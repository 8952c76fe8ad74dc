"""Exchange of ids between the processes: from those that read the rows of a batch to those that hold the rows of tables."""

from __future__ import annotations

from typing import Any

from dlrm_mtl.core.phases import phase


class Exchanging:
    """Part of a sharded collection: its lookup, with the exchanges of ids and of vectors as phases of a step."""

    def forward(self: Any, features: Any) -> Any:
        """Look up ``features``; returns TorchRec's awaitable of the vectors."""
        context = self.create_context()
        with phase("input exchange"):
            arrived = self.input_dist(context, features).wait().wait()
        with phase("output exchange"):
            return self.compute_and_output_dist(context, arrived)
