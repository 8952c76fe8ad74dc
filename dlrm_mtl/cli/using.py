"""Commands that use a trained run: ``evaluate`` and ``predict``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlrm_mtl.cli.options import CheckpointName, Overrides, RunPath
from dlrm_mtl.cli.voice import speaks
from dlrm_mtl.core.errors import UserError


def evaluate(
    run: RunPath,
    split: Annotated[
        str | None,
        typer.Option(
            help="The split of the data set to evaluate on. Default: test; with --watch: validation.",
            show_default=False,
        ),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            help="Parquet file, or folder of them, with features and labels, in the place of a split; path or URI."
        ),
    ] = None,
    checkpoint: CheckpointName = None,
    overrides: Overrides = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Evaluate every checkpoint as it appears, oldest first, until the run has ended."),
    ] = False,
    every: Annotated[
        float,
        typer.Option(min=0.1, max=300, metavar="SECONDS", help="With --watch: seconds between looks at the folder."),
    ] = 30.0,
    output: Annotated[
        str | None,
        typer.Option(
            help="With --watch: file to which a line of JSON is appended for each checkpoint; what it holds already is not "
            "evaluated again. Default: print the lines."
        ),
    ] = None,
) -> None:
    """Evaluate a trained run on a split of its data set, or on other files; with --watch, while it is being trained."""
    from dlrm_mtl.run.predict import evaluate_run

    if not watch:
        if output is not None:
            raise UserError(f"--output {output}: goes with --watch; a single evaluation is only shown.")
        evaluate_run(run, split or "test", checkpoint, overrides, source=input)
        return
    if checkpoint is not None:
        raise UserError(
            f"--checkpoint {checkpoint}: does not go with --watch, which evaluates all; leave one of them out."
        )
    from dlrm_mtl.run.watch import watch_run
    from dlrm_mtl.training.interruption import Interrupted

    try:
        watch_run(run, split or "validation", every, output, overrides, input)
    except Interrupted as stopped:
        if speaks():
            print(f"{stopped}; go on with the same command", flush=True)
        raise SystemExit(128 + stopped.number) from None


def predict(
    run: RunPath,
    input: Annotated[
        str, typer.Option(help="Parquet file, or folder of them, with the columns of the run's features; path or URI.")
    ],
    output: Annotated[
        str,
        typer.Option(
            help="File to write, by its ending .parquet, .csv, .csv.gz or .jsonl: one row per input row, in the same order; "
            "path or URI."
        ),
    ],
    carry: Annotated[list[str] | None, typer.Option(help="Column of the input to carry over. May be repeated.")] = None,
    checkpoint: CheckpointName = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that a process has in memory at a time.")] = 8192,
    overrides: Overrides = None,
) -> None:
    """Predict every task for the rows of Parquet files, in constant memory.

    Alone it uses one process. Several, started like those of `train`, share the rows; the first one writes the file.
    """
    from dlrm_mtl.run.predict import predict_run
    from dlrm_mtl.run.show import ShowProgress

    predict_run(run, input, output, carry or [], checkpoint, batch_size, overrides, [ShowProgress()])
