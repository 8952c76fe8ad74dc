"""The commands ``compare`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.core.errors import UserError

RunFolders = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...", help="Folders of runs, finished or still training, or folders that hold such folders."
    ),
]


def compare(
    runs: RunFolders,
    html: Annotated[
        Path | None, typer.Option(help="Write a self-contained page with all curves to this file, too.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Metric to show of every task, such as log_loss. May be repeated. Default: AUC and RMSE."),
    ] = None,
) -> None:
    """Compare runs: metrics, speed, and where their configurations differ; seeds become means with intervals.

    A run that cannot be read is named in a sentence, and the others are shown; if it was named itself, the exit code is 2.
    """
    from dlrm_mtl.reports.compare import compare_runs

    compare_runs(_local(runs, "compare"), html, metric or [])


def report(
    runs: RunFolders,
    html: Annotated[Path, typer.Option(help="File of the page.")] = Path("report.html"),
) -> None:
    """Write a self-contained page about one run or several.

    It shows metrics with intervals, calibration, ROC and precision-recall curves, slices, curves of training, time per phase,
    the sharding plan, and where configurations differ. It needs no network, no data set and no checkpoint.
    """
    from dlrm_mtl.reports.compare import report_runs

    report_runs(_local(runs, "report"), html)


def _local(runs: list[str], command: str) -> list[Path]:
    for run in runs:
        if "://" in run:
            raise UserError(
                f"{run}: {command} reads local folders; copy the run's folder here, without its checkpoints."
            )
    return [Path(run) for run in runs]
