"""``dlrm-mtl compare`` and ``dlrm-mtl report``: trained runs side by side, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from dlrm_mtl.console import console
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.reports.comparison_notes import notes
from dlrm_mtl.reports.comparison_tables import (
    HEADLINES,
    SPLITS,
    difference_tables,
    metric_tables,
    paired_tables,
    runs_table,
)
from dlrm_mtl.reports.groups import Group, group_runs
from dlrm_mtl.reports.runs import RecordedRun, Skipped, find_runs
from dlrm_mtl.reports.terminal import rich_table


def compare_runs(paths: Sequence[str | PathLike[str]], html: Path | None = None, metrics: Sequence[str] = ()) -> None:
    """Print a comparison of the runs in ``paths``, and write a page with their curves.

    Runs that cannot be read are left out, with a sentence.

    Args:
        paths: folders of runs, finished or not, or folders that hold such folders.
        html: file of the page; None for no page.
        metrics: metrics that the terminal shows for every task; default: :data:`HEADLINES`.

    Raises:
        UserError: there is no such metric, the page cannot be written, or, after the others were shown, a folder in ``paths``
            holds no run that can be read.
    """
    for metric in metrics:
        if metric not in ALL_METRICS:
            raise UserError(f"compare: --metric: there is no metric {metric!r}; {suggest(metric, ALL_METRICS)}.")
    runs, groups, skipped = _readable(paths)
    out = console()
    tables = [runs_table(runs)]
    for split in SPLITS:
        tables += metric_tables(runs, groups, split, metrics or HEADLINES)
        tables += paired_tables(groups, split, metrics or HEADLINES)
    for table in [*tables, *difference_tables(groups)]:
        out.print(rich_table(table))
    for note in notes(runs, groups, [each for each in skipped if not each.named]):
        out.print(f"note: {note}", soft_wrap=True)
    if html is not None:
        _write_page(html, runs, groups, skipped)
    _refuse_named(skipped)


def report_runs(paths: Sequence[str | PathLike[str]], html: Path) -> None:
    """Write a page about one run or several; arguments and errors as of :func:`compare_runs`."""
    runs, groups, skipped = _readable(paths)
    for note in notes(runs, groups, [each for each in skipped if not each.named]):
        console().print(f"note: {note}", soft_wrap=True)
    _write_page(html, runs, groups, skipped)
    _refuse_named(skipped)


def _readable(paths: Sequence[str | PathLike[str]]) -> tuple[list[RecordedRun], list[Group], list[Skipped]]:
    """The runs that can be read, by configuration, and what is left out; raises :class:`UserError` if there is none."""
    runs, skipped = find_runs(paths)
    if not runs:
        raise UserError("\n".join(each.reason for each in skipped))
    return runs, group_runs(runs), skipped


def _write_page(html: Path, runs: Sequence[RecordedRun], groups: Sequence[Group], skipped: Sequence[Skipped]) -> None:
    from dlrm_mtl.reports.compare_page import comparison_page  # plots only if needed

    comparison_page(runs, groups, skipped).write(html)
    console().print(f"{html}: written; open it in a browser")


def _refuse_named(skipped: Sequence[Skipped]) -> None:
    """End with an error for what the user named; a damaged run beside others is no mistake."""
    if any(each.named for each in skipped):
        raise UserError("\n".join(each.reason for each in skipped if each.named))
