"""Training on data that grows: one round after the other, until no new file is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.core.processes import first_process_only
from dlrm_mtl.data.dataset import Dataset, Split
from dlrm_mtl.data.growing import Consumed, next_round

SPLIT = "train"


@dataclass(frozen=True)
class Round:
    """One pass over files that had not been used when it began."""

    split: Split
    number: int
    """Rounds before it; it stands for the epoch in the order of rows."""
    first_step: int


def rounds(
    dataset: Dataset, progress: RunState, finished: Callable[[], None], say: Callable[[str], None]
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
        before = Consumed.from_state(progress.consumed)
        consumed, split = _agree(dataset, before, say)
        if split is None:
            return
        again = bool(before.current)
        if not again:
            progress.round_start = progress.step
        progress.consumed = consumed.state()
        kind = "resuming round" if again else "round"
        say(f"{kind} {consumed.rounds + 1}: {len(split.files):,} new file(s), {split.rows:,} rows")
        yield Round(split, consumed.rounds, progress.round_start)
        consumed.finish_round()
        progress.consumed = consumed.state()
        finished()


def _agree(dataset: Dataset, before: Consumed, say: Callable[[str], None]) -> tuple[Consumed, Split | None]:
    """The next round, the same on every process: what it adds to ``before``, and its files; None if there are none."""

    def look() -> dict[str, Any]:
        consumed = Consumed.from_state(before.state())
        for remark in next_round(dataset, SPLIT, consumed).remarks:
            say(f"note: {remark}")
        return consumed.state()

    # The folder may grow between two looks, so all take what the first process saw.
    consumed = Consumed.from_state(first_process_only(look))
    return consumed, next_round(dataset, SPLIT, consumed).split if consumed.current else None
