"""The command ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.core.errors import UserError


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs, finished or still training.")],
    html: Annotated[
        Path | None, typer.Option(help="Write a self-contained page with all curves to this file, too.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Metric to show of every task, such as log_loss. May be repeated. Default: AUC and RMSE."),
    ] = None,
) -> None:
    """Compare runs: metrics, speed, and where their configurations differ; seeds become means with intervals."""
    from dlrm_mtl.reports.compare import compare_runs

    for run in runs:
        if "://" in run:
            raise UserError(
                f"{run}: compare reads local folders; copy config.yaml, metrics.jsonl and results.json into one."
            )
    compare_runs([Path(run) for run in runs], html, metric or [])
