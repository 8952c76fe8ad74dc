"""``dlrm-mtl compare``: trained runs side by side, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from dlrm_mtl.console import console
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.reports.comparison_tables import (
    HEADLINES,
    SPLITS,
    difference_tables,
    metric_tables,
    notes,
    paired_tables,
    runs_table,
)
from dlrm_mtl.reports.groups import group_runs
from dlrm_mtl.reports.runs import read_runs
from dlrm_mtl.reports.terminal import rich_table


def compare_runs(paths: Sequence[str | PathLike[str]], html: Path | None = None, metrics: Sequence[str] = ()) -> None:
    """Print a comparison of the runs in ``paths``, and write a page with their curves.

    Args:
        paths: folders of runs, finished or not, or folders that hold such folders.
        html: file of the page; None for no page.
        metrics: metrics that the terminal shows for every task; default: :data:`HEADLINES`.

    Raises:
        UserError: a folder holds no run, there is no such metric, or the page cannot be written.
    """
    for metric in metrics:
        if metric not in ALL_METRICS:
            raise UserError(f"compare: --metric: there is no metric {metric!r}; {suggest(metric, ALL_METRICS)}.")
    runs = read_runs(paths)
    groups = group_runs(runs)
    out = console()
    tables = [runs_table(runs)]
    for split in SPLITS:
        tables += metric_tables(runs, groups, split, metrics or HEADLINES)
        tables += paired_tables(groups, split, metrics or HEADLINES)
    for table in [*tables, *difference_tables(groups)]:
        out.print(rich_table(table))
    for note in notes(groups):
        out.print(f"note: {note}")
    if html is not None:
        from dlrm_mtl.reports.compare_page import comparison_page  # plots only if needed

        comparison_page(runs, groups).write(html)
        out.print(f"{html}: written; open it in a browser")
