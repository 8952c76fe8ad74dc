"""Training on growing data: one round after the other, until no new file is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.core.processes import first_process_only
from dlrm_mtl.data.dataset import Dataset, Split
from dlrm_mtl.data.growing import Consumed, next_round

logger = logging.getLogger(__name__)

SPLIT = "train"


@dataclass(frozen=True)
class Round:
    """One pass over files that were unused when it started."""

    split: Split
    number: int
    """Number of earlier rounds; takes the place of the epoch in the order of rows."""
    first_step: int


def rounds(dataset: Dataset, progress: RunState, finished: Callable[[], None]) -> Iterator[Round]:
    """Rounds to train, starting with an interrupted one, if any.

    Every process must iterate. Asking for the next round marks the previous one as done in ``progress``.

    Args:
        dataset: data set whose training split grows.
        progress: state of the run.
        finished: called when a round is done, to save ``progress``.

    Raises:
        UserError: see :func:`~dlrm_mtl.data.growing.next_round`.
    """
    while True:
        before = Consumed.from_state(progress.consumed)
        consumed, split = _agree(dataset, before)
        if split is None:
            return
        again = bool(before.current)
        if not again:
            progress.round_start = progress.step
        progress.consumed = consumed.state()
        kind = "resuming round" if again else "round"
        if dist.get_rank() == 0:
            text = f"{len(split.files):,} new file(s), {split.rows:,} rows"
            logger.info("%s %d: %s", kind, consumed.rounds + 1, text)
        yield Round(split, consumed.rounds, progress.round_start)
        consumed.finish_round()
        progress.consumed = consumed.state()
        finished()


def _agree(dataset: Dataset, before: Consumed) -> tuple[Consumed, Split | None]:
    """Consumed files including the next round, and its split, the same on every process; no split without new files."""

    def look() -> dict[str, Any]:
        consumed = Consumed.from_state(before.state())
        for remark in next_round(dataset, SPLIT, consumed).remarks:
            logger.info("note: %s", remark)
        return consumed.state()

    # The folder may grow between two listings, so all processes use the first one's.
    consumed = Consumed.from_state(first_process_only(look))
    return consumed, next_round(dataset, SPLIT, consumed).split if consumed.current else None
