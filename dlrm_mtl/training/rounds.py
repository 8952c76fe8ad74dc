"""Training on data that grows: one round after the other, until no new file is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.distributed as dist

from dlrm_mtl.data.dataset import Dataset, Split
from dlrm_mtl.data.growing import Consumed, next_round
from dlrm_mtl.training.checkpoint import Progress
from dlrm_mtl.training.distributed import first_process_only

SPLIT = "train"


@dataclass(frozen=True)
class Round:
    """One pass over files that had not been used when it began."""

    split: Split
    number: int
    """Rounds before it; it stands for the epoch in the order of rows."""
    first_step: int


def rounds(
    dataset: Dataset, progress: Progress, finished: Callable[[], None], say: Callable[[str], None]
) -> Iterator[Round]:
    """The rounds that are to be trained, beginning with the one that was interrupted, if any.

    To be iterated over on every process. When the next round is asked for, the one before is entered into ``progress`` as done.

    Args:
        dataset: whose training split grows.
        progress: of the run.
        finished: called when a round is done, to save ``progress``.
        say: called with what a user should know.

    Raises:
        UserError: see :func:`~dlrm_mtl.data.growing.next_round`.
    """
    while True:
        consumed = Consumed.from_state(progress.consumed)
        again = bool(consumed.current)
        split = _agree(dataset, consumed, say)
        if split is None:
            return
        if not again:
            progress.round_start = progress.step
        progress.consumed = consumed.state()
        kind = "resuming round" if again else "round"
        say(f"{kind} {consumed.rounds + 1}: {len(split.files):,} new file(s), {split.rows:,} rows")
        yield Round(split, consumed.rounds, progress.round_start)
        consumed.finish_round()
        progress.consumed = consumed.state()
        finished()


def _agree(dataset: Dataset, consumed: Consumed, say: Callable[[str], None]) -> Split | None:
    """The next round's files, the same on every process, entered into ``consumed``; None if there are none."""
    found: list[Split | None] = [None]

    def look() -> None:
        current = next_round(dataset, SPLIT, consumed)
        found[0] = current.split
        for remark in current.remarks:
            say(f"note: {remark}")

    # The folder may grow between two looks, so the others are told what the first process saw.
    first_process_only(look)
    state = [consumed.state()]
    dist.broadcast_object_list(state)
    if dist.get_rank():
        seen = Consumed.from_state(state[0])
        consumed.current, consumed.done, consumed.rounds = seen.current, seen.done, seen.rounds
        found[0] = next_round(dataset, SPLIT, consumed).split if consumed.current else None
    return found[0]
