"""Commands that score with a bundle: ``score``, ``tune-score`` and ``skew``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlrm_mtl.cli.options import Plugins, PolicyOption
from dlrm_mtl.core.errors import UserError


def score(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The folder that `export` wrote.")],
    input: Annotated[
        str,
        typer.Option(
            help="Rows of the prepared data set, or raw ones with --raw-rows: Parquet file or folder, or JSON lines "
            "(.jsonl); path or URI."
        ),
    ],
    output: Annotated[
        str, typer.Option(help="File to write, by its ending .parquet, .csv, .csv.gz or .jsonl; path or URI.")
    ],
    carry: Annotated[list[str] | None, typer.Option(help="Column of the input to carry over. May be repeated.")] = None,
    missing: PolicyOption = None,
    unknown: PolicyOption = None,
    raw_rows: Annotated[
        bool, typer.Option("--raw-rows", help="Rows are raw: prepare them as the run's data set was prepared.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in memory at a time.")] = 8192,
    raw: Annotated[bool, typer.Option("--raw", help="Predictions before calibration.")] = False,
    plugins: Plugins = None,
) -> None:
    """Score the rows of a file with a bundle, in constant memory; needs neither TorchRec nor the run."""
    from dlrm_mtl.serve.score_file import policies_of, score_file
    from dlrm_mtl.serve.scorer import Scorer

    scorer = Scorer(
        bundle,
        missing=policies_of(missing or [], "--missing"),
        unknown=policies_of(unknown or [], "--unknown"),
        plugins=plugins or [],
        rows="raw" if raw_rows else "prepared",
    )
    score_file(scorer, input, output, carry or [], batch_size, raw)


def tune_score_command(
    place: Annotated[str, typer.Argument(metavar="BUNDLE_OR_RUN", help="Folder of a bundle or of a run.")],
    input: Annotated[
        str, typer.Option(help="Rows with labels, usually the validation split: Parquet file or folder, or JSON lines.")
    ],
    output: Annotated[str, typer.Option(help="JSON file to write: the score, and all that were tried.")],
    plot: Annotated[str | None, typer.Option(help="Plot of the trade-off to write: .svg or .png.")] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK/METRIC[=WEIGHT]",
            help="What to maximise, as a weighted sum: auc, gauc, ndcg@K or mrr of the order for a task's label. May be "
            "repeated. Default: gauc of every binary task with --by, else auc.",
        ),
    ] = None,
    at_least: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK/METRIC=VALUE", help="Condition that the score must fulfil. May be repeated."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Column whose equal values make a group, such as user_id; for all metrics but auc."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task that the score may use. May be repeated. Default: those of --objective."),
    ] = None,
    form: Annotated[str, typer.Option(help="`product` of powers, or weighted `sum`.")] = "product",
    check: Annotated[
        str | None, typer.Option(help="Other rows with labels, such as the test split, to show the metrics on, too.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, max=5_000, help="Number of scores to try.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 1,
    plugins: Plugins = None,
) -> None:
    """Tune the score that `rank` orders candidates by, and draw what one task gains and another loses."""
    if form not in ("product", "sum"):
        raise UserError(f"--form {form}: choose product or sum.")
    from dlrm_mtl.serve.tune_bundle import Tuning, report_tuning, tune_score, write_tuning

    if plot is not None:
        from dlrm_mtl.reports.score_plot import TradeOff, check_plot_name, write_trade_off

        check_plot_name(plot)
    wishes = Tuning(
        objective or [], at_least or [], task or [], by, "sum" if form == "sum" else "product", trials, seed
    )
    found, content = tune_score(place, input, wishes, check, plugins or [])
    write_tuning(content, output)
    if plot is not None:
        tried = [found.point(each) for each in found.tried]
        write_trade_off(TradeOff(found.axes, tried, found.point(found.start), found.point(found.best)), plot)
    report_tuning(content)


def skew(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The folder that `export` wrote.")],
    log: Annotated[
        str,
        typer.Argument(
            metavar="LOG",
            help="Requests that `serve` logged, or rows: JSON lines (.jsonl), or rows as Parquet; path or URI.",
        ),
    ],
    data: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Data set to compare features with, such as that of training.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    on: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Columns that identify a row in the log and in the data set, to compare rows. Default: distributions.",
        ),
    ] = None,
    raw_rows: Annotated[
        bool, typer.Option("--raw-rows", help="Rows are raw: prepare them as the run's data set was prepared.")
    ] = False,
    missing: PolicyOption = None,
    unknown: PolicyOption = None,
    plugins: Plugins = None,
) -> None:
    """Compare logged requests with a bundle and with training data; exit code 1 if something differs.

    Scores the rows again and compares the scores, then the features with those of --data, and names the one that differs most.
    """
    from dlrm_mtl.serve.score_file import policies_of
    from dlrm_mtl.serve.skew.command import show_skew
    from dlrm_mtl.serve.skew.replay import Limits, LogReader

    reader = LogReader(
        bundle,
        "raw" if raw_rows else "prepared",
        policies_of(missing or [], "--missing"),
        policies_of(unknown or [], "--unknown"),
        plugins or [],
    )
    keys = [name.strip() for name in (on or "").split(",") if name.strip()]
    if show_skew(reader, log, data, split, keys, Limits()):
        raise SystemExit(1)
