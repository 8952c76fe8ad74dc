"""What a reader of a comparison must know first, a sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from dlrm_mtl.reports.groups import Group
from dlrm_mtl.reports.runs import RecordedRun, Skipped, same_data

NAMED = 6
"""Most runs that a sentence names."""


def notes(runs: Sequence[RecordedRun], groups: Sequence[Group], skipped: Sequence[Skipped] = ()) -> list[str]:
    """Notes on what is left out, unfinished, damaged, or does not compare."""
    result = [f"left out: {each.reason.rstrip('.')}" for each in skipped]
    if not same_data(runs):
        of_data: dict[str, list[str]] = {}
        for run in runs:
            of_data.setdefault(run.data, []).append(run.label)
        found = "; ".join(f"{data}: {listed(labels)}" for data, labels in of_data.items())
        result.append(
            f"the runs were evaluated on different data, so their metrics do not compare, and none is marked as best: {found}"
        )
    for run in runs:
        if not run.finished:
            tested = "its test split is not evaluated, and its metrics are those so far"
            result.append(f"{run.label}: has not ended; its last entry is of step {run.step:,}, {tested}")
        result += run.content.problems
    for group in groups:
        for run in group.repeated:
            other = next(other.label for other in group.runs if other.seed == run.seed)
            result.append(
                f"{run.label} has seed {run.seed}, as has {other}; it is left out of means and intervals over seeds"
            )
    return result


def listed(labels: Sequence[str]) -> str:
    """Labels in a sentence, the first ones if there are many."""
    if len(labels) > NAMED:
        return f"{', '.join(labels[:NAMED])} and {len(labels) - NAMED} more"
    return ", ".join(labels)
