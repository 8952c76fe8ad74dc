"""The command ``dlrm-mtl``. Heavy imports happen inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import functools
import gc
import io
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

import dlrm_mtl
from dlrm_mtl.core.errors import EXIT_CODE, PeerLostError, UserError
from dlrm_mtl.core.extras import extras_named
from dlrm_mtl.core.uri_secrets import refuse_secrets
from dlrm_mtl.prepare.commands import AdapterGroup
from dlrm_mtl.run.checkpoint_commands import app as checkpoint_app

app = typer.Typer(
    help="Train and use multitask ranking models on sharded embedding tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Check configuration files, and print their schema.", no_args_is_help=True)
app.add_typer(config_app, name="config")
data_app = typer.Typer(help="Look into data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
bundle_app = typer.Typer(help="Check bundles.", no_args_is_help=True)
app.add_typer(bundle_app, name="bundle")
prepare_app = typer.Typer(
    cls=AdapterGroup,
    help="Turn your own tables or a published data set into Parquet files and dataset.yaml.",
    no_args_is_help=True,
    subcommand_metavar="DATASET [OPTIONS]",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(prepare_app, name="prepare")


def _load_adapters(modules: list[str] | None) -> None:
    from dlrm_mtl.core.plugins import load_plugins

    load_plugins(modules or [], "--plugin")


@prepare_app.callback()
def _prepare_options(
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="MODULE",
            callback=_load_adapters,
            is_eager=True,
            help="Module that registers adapters of your own; it is run. May be repeated.",
        ),
    ] = None,
) -> None:
    """Options before the data set."""


ConfigFile = Annotated[Path, typer.Argument(help="The run's YAML file, such as configs/kuairand_mmoe.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as training.epochs=3. May be repeated."),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", metavar="MODULE", help="Module that registers parts of your own; it is run. May be repeated."
    ),
]
RunPath = Annotated[
    str, typer.Argument(metavar="RUN", help="The folder of a trained run, such as runs/kuairand_mmoe; path or URI.")
]
CheckpointName = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", help="`best`, `latest` or `step_N`. Default: the best one; the latest if none is known."
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dlrm-mtl {dlrm_mtl.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version, and leave.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def init(
    data_set: Annotated[
        str, typer.Argument(metavar="DATASET", help="The data set's folder, which holds dataset.yaml; path or URI.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="YAML file to write, such as run.yaml. Default: print it.")
    ] = None,
) -> None:
    """Draft a first configuration for a data set: a task for every label, all features, sizes that fit."""
    from dlrm_mtl.config.draft import draft_config, write_draft

    if output is None:
        print(draft_config(data_set), end="")
    else:
        write_draft(data_set, output)
        print(f"{output}: written; look through it, then: dlrm-mtl train {shlex.quote(str(output))}")


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="The run's folder; path, or URI of an object store. Default: runs/NAME, from the configuration."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in the run's folder, if any.")
    ] = False,
    plugins: Plugins = None,
    fallback: Annotated[
        bool,
        typer.Option(
            "--fallback", help="With --resume: where the latest checkpoint is damaged, take the newest good one."
        ),
    ] = False,
    set_on_resume: Annotated[
        list[str] | None,
        typer.Option(
            "--set-on-resume",
            metavar="KEY=VALUE",
            help="With --resume: change a key on purpose that decides on the result. Kept in history.jsonl. May be repeated.",
        ),
    ] = None,
) -> None:
    """Train a model and evaluate its best checkpoint on the test split.

    Alone it uses one process. For several: torchrun --nproc-per-node 2 -m dlrm_mtl train CONFIG, or torchx run
    launchers/train.py:ddp, on one host or many.
    """
    from dlrm_mtl.doctor import check_or_raise

    check_or_raise()
    from dlrm_mtl.config.load import load_config

    changed = set_on_resume or []
    loaded = load_config(config, [*(overrides or []), *changed], plugins)
    from dlrm_mtl.run.show import ShowProgress
    from dlrm_mtl.run.train import run_training
    from dlrm_mtl.training.interruption import Interrupted

    folder = output or f"runs/{loaded.name}"
    try:
        run_training(loaded, folder, resume, [ShowProgress()], fallback=fallback, changed=changed)
    except Interrupted as stopped:
        if _speaks():
            how = (
                f"; resume from it with the run's folder {folder} as --output, and --resume"
                if stopped.resumable
                else ""
            )
            print(f"{stopped}{how}", flush=True)
        raise SystemExit(128 + stopped.number) from None


@app.command()
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
        if _speaks():
            print(f"{stopped}; go on with the same command", flush=True)
        raise SystemExit(128 + stopped.number) from None


@app.command()
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


@app.command()
def export(
    run: RunPath,
    output: Annotated[str, typer.Option(help="The bundle: a folder to write, on this machine.")],
    checkpoint: CheckpointName = None,
    overrides: Overrides = None,
    golden: Annotated[
        str | None,
        typer.Option(
            help="Parquet file or folder whose first 1,000 rows are scored, to be compared whenever the bundle is loaded. "
            "Default: the test split."
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="FORMULA",
            help="Score that `rank` orders candidates by, such as '{product: {is_click: 1, long_view: 0.5}}', in the place of "
            "the configuration's serving.score.",
        ),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TASK=]METHOD",
            help="`isotonic` or `platt`, fitted on the validation split, or `negatives:SHARE` for a log with that share of its "
            "negatives; for one binary task or all. May be repeated.",
        ),
    ] = None,
    tables: Annotated[
        str,
        typer.Option(
            help="Format of the tables: `fp32`, or `fp16`, `int8`, `int4`, which are compared with fp32 on the test split."
        ),
    ] = "fp32",
    max_auc_change: Annotated[
        float | None,
        typer.Option(
            help="Largest absolute change of a task's AUC by the format. Default: 0.0002; 0.001 for int4.", min=0
        ),
    ] = None,
    max_loss_change: Annotated[
        float | None,
        typer.Option(
            help="Largest relative increase of a task's normalised entropy, or RMSE, by the format: 0.01 is 1 %. Default: "
            "0.0005; 0.003 for int4.",
            min=0,
        ),
    ] = None,
    evaluate_on: Annotated[
        str | None,
        typer.Option(help="Parquet file or folder with labels to compare the formats on. Default: the test split."),
    ] = None,
) -> None:
    """Export a trained run as a bundle: one folder that scores rows without TorchRec, with `score` or dlrm_mtl.Scorer."""
    from dlrm_mtl.doctor import check_or_raise

    check_or_raise()
    from typing import cast

    from dlrm_mtl.core.yaml_text import parse_yaml
    from dlrm_mtl.embeddings.row_formats import FormatName
    from dlrm_mtl.serve.export import export_run
    from dlrm_mtl.serve.table_export import TableOptions

    try:
        parse_yaml(score or "")
    except ValueError:
        raise UserError(
            f"--score {score}: this is not YAML; write it like '{{product: {{is_click: 1, long_view: 0.5}}}}'."
        ) from None
    chosen = [*(overrides or []), *([] if score is None else [f"serving.score={score}"])]
    options = TableOptions(cast(FormatName, tables), max_auc_change, max_loss_change, evaluate_on)
    export_run(run, output, checkpoint, chosen, golden, calibrate or [], options)


PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[FEATURE=]POLICY",
        help="`refuse`, `default` (as null) or `unknown` (as id 0), for one feature or all. May be repeated.",
    ),
]


@app.command()
def apply(
    versions: Annotated[str, typer.Argument(metavar="VERSIONS", help="Folder of training.publish.to, path or URI.")],
    output: Annotated[Path, typer.Option(help="Folder for the bundle.", file_okay=False)],
    number: Annotated[
        int | None, typer.Option(min=1, help="Number of the version. Default: the newest one.", show_default=False)
    ] = None,
    tables: Annotated[
        str,
        typer.Option(help="Format of the tables: `fp32`, `fp16`, `int8` or `int4`, without a report of its quality."),
    ] = "fp32",
    plugins: Plugins = None,
) -> None:
    """Write the bundle of a published version: the last base and all changes that follow it.

    It has the same bytes as the bundle that `export` writes of that step.
    """
    from typing import cast

    from dlrm_mtl.embeddings.row_formats import FormatName
    from dlrm_mtl.serve.follow.assemble import write_version
    from dlrm_mtl.serve.follow.places import versions_store, versions_until

    store = versions_store(versions)
    write_version(store, versions_until(store, number), output, plugins or [], cast(FormatName, tables))


@app.command()
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


@app.command("export-graph")
def export_graph(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The folder that `export` wrote.")],
    output: Annotated[str, typer.Option(help="File to write on this machine: .pt2, or .onnx for ONNX.")],
    format: Annotated[
        str,
        typer.Option(
            help="torch (a program of torch.export), aoti (compiled by AOTInductor for this processor) or onnx."
        ),
    ] = "torch",
    plugins: Plugins = None,
) -> None:
    """Export a bundle's model as one graph, from encoded rows to scores, for servers of others.

    It is written only if it gives the bundle's golden rows their scores, within 1e-6.
    """
    from dlrm_mtl.serve.graphs.export import export_graph

    export_graph(bundle, output, format, plugins or [])


@app.command("export-tables")
def export_tables(
    source: Annotated[
        str, typer.Argument(metavar="BUNDLE|RUN", help="The folder of a bundle, or of a run; a run's may be a URI.")
    ],
    output: Annotated[str, typer.Option(help="Folder to write; path or URI.")],
    format: Annotated[
        str, typer.Option(help="parquet (a file for each table: id, value, vector) or safetensors (one file).")
    ] = "parquet",
    table: Annotated[
        list[str] | None, typer.Option(help="Name of a table. May be repeated. Default: all tables.")
    ] = None,
    checkpoint: CheckpointName = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Prepared data set whose vocabularies.parquet has the value behind each id; path or URI. Default: a run's "
            "own, if it is unchanged."
        ),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Export embedding tables for search indexes, feature stores and notebooks, in bounded memory."""
    from dlrm_mtl.serve.table_files.write import export_tables

    export_tables(source, output, format, table or [], checkpoint, data, plugins or [])


@app.command()
def serve(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="[BUNDLE]",
            help="The folder that `export` wrote, a link to it, or a folder of such folders, of which the last by name is "
            "served.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one, which is printed.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all, as in a container. There is no access control.")
    ] = "127.0.0.1",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that score. Default: the number of cores.", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a worker that compute one request.")] = 1,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go over to a new bundle, or another target of the link, when it is there.")
    ] = False,
    follow: Annotated[
        str | None,
        typer.Option(
            metavar="VERSIONS",
            help="In place of a bundle: the folder of a run's training.publish.to, path or URI; the newest version is served, "
            "and the next ones as they are published.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="With --follow: folder of this machine for versions. Default: one in ~/.cache/dlrm-mtl.",
            show_default=False,
        ),
    ] = None,
    tables: Annotated[
        str | None,
        typer.Option(
            help="With --follow: format of the tables, `fp32`, `fp16`, `int8` or `int4`. Default: fp32.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="With --follow: bundle that `export --calibrate` wrote of the same run; its maps are applied. Default: none.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        float,
        typer.Option(
            min=0.1, max=3600, metavar="SECONDS", help="With --watch and --follow: seconds between two looks."
        ),
    ] = 5.0,
    missing: PolicyOption = None,
    unknown: PolicyOption = None,
    raw_rows: Annotated[
        bool, typer.Option("--raw-rows", help="Rows are raw: prepare them as the run's data set was prepared.")
    ] = False,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Largest body of a request.")] = "16MiB",
    max_rows: Annotated[int, typer.Option(min=1, help="Most rows or candidates of a request.")] = 10_000,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that wait in a worker; one more is answered with 503.")
    ] = 64,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="Time for a request's body, for its scores, and for the end."),
    ] = 10.0,
    request_log: Annotated[
        Path | None,
        typer.Option(help="File for requests and their scores, as JSON lines; only its owner can read it."),
    ] = None,
    log_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the requests that is written to --request-log.")
    ] = 0.01,
    slow_log: Annotated[Path | None, typer.Option(help="File for slow requests, in the same form.")] = None,
    slow_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds from which on a request is written to --slow-log.")
    ] = 100.0,
    log_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Size at which a log becomes FILE.1, and another one begins.")
    ] = "1GiB",
    plugins: Plugins = None,
) -> None:
    """Serve a bundle over HTTP: JSON and Arrow, metrics for Prometheus, several processes on one copy of the tables.

    POST /v1/score takes {"rows": [{...}, ...]}, POST /v1/rank {"context": {...}, "candidates": [{...}, ...], "top": 10}. GET
    /v1/model lists the fields of a row, /healthz and /readyz are for probes,
    /metrics is for Prometheus. SIGTERM lets requests finish. Press Ctrl-C to end.
    """
    from dlrm_mtl.serve.http.start import source_of, start_server

    start_server(
        source_of(
            bundle, follow, cache, watch, missing or [], unknown or [], raw_rows, plugins or [], tables, calibration
        ),
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        every=every if watch or follow else None,
        max_body=max_body,
        max_rows=max_rows,
        queue=queue,
        timeout=timeout,
        request_log=request_log,
        log_share=log_share,
        slow_log=slow_log,
        slow_milliseconds=slow_ms,
        log_size=log_size,
    )


@app.command()
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


@app.command()
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


@app.command("tune-score")
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


@app.command()
def doctor(
    distributed: Annotated[
        bool,
        typer.Option("--distributed", help="Check between the processes of a job that is started like a training."),
    ] = False,
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="With --distributed: file or folder that all hosts must see alike, such as the data set; path or URI. May be "
            "repeated."
        ),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            help="With --distributed: folder that all hosts must share and write to, such as the run's. May be repeated."
        ),
    ] = None,
) -> None:
    """Print versions, devices and backends, and check that they fit together; exit code 1 if they don't.

    With --distributed, started like `train`: check sums, bandwidth, clocks, versions and paths between the processes of a job;
    exit code 2 if something is wrong.
    """
    if distributed:
        from dlrm_mtl.doctor import check_or_raise

        check_or_raise()
        from dlrm_mtl.job_check.report import check_job

        check_job(path or [], output or [])
        return
    if path or output:
        raise UserError(f"--{'path' if path else 'output'}: goes with --distributed; add it.")
    from rich.console import Console

    from dlrm_mtl.doctor import hints, problems, report

    console = Console(highlight=False)
    console.print(report())
    found = problems(thorough=True)
    for problem in found:
        console.print(f"problem: {problem}", soft_wrap=True)
    for hint in hints():
        console.print(f"hint: {hint}", soft_wrap=True)
    if found:
        raise SystemExit(1)
    console.print("All is well.")


@app.command()
def models(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="A run's YAML file, such as configs/kuairand_mmoe.yaml.")
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugins: Plugins = None,
) -> None:
    """List the multitask architectures; with a configuration, what each would cost in the place of the one it names."""
    from dlrm_mtl.core.plugins import load_plugins
    from dlrm_mtl.run.show_models import list_models, show_costs

    load_plugins(plugins or [], "--plugin")
    if config is not None:
        show_costs(config, overrides, as_json)
    elif overrides:
        raise UserError("--set: there is no configuration to override; name one, such as configs/kuairand_mmoe.yaml.")
    else:
        list_models(as_json)


@app.command()
def plan(
    config: ConfigFile,
    processes: Annotated[int, typer.Option(min=1, help="Number of all processes of the run.")] = 1,
    hosts: Annotated[int, typer.Option(min=1, help="Number of hosts, which share the processes equally.")] = 1,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of a host, such as 64GB. Default: this machine's.")
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of a GPU, one for each process, such as 80GB. Default: this machine's, if any."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugins: Plugins = None,
) -> None:
    """Show where the tables of a run would live, and what every process would hold, without training.

    One process plans for any number of them, and for machines other than this one.
    """
    from dlrm_mtl.run.plan import show_plan

    show_plan(config, overrides, plugins, processes, hosts, memory, gpu_memory, as_json)


@config_app.command("check")
def config_check(file: ConfigFile, overrides: Overrides = None, plugins: Plugins = None) -> None:
    """Check a configuration file, beside its data set's dataset.yaml if that is there, and say what is wrong with it."""
    from dlrm_mtl.config.check import check_against_data_set, check_pretrained
    from dlrm_mtl.config.load import load_config

    loaded = load_config(file, overrides, plugins)
    check_against_data_set(loaded, str(file))
    check_pretrained(loaded, str(file))
    if loaded.init_from is not None:
        from dlrm_mtl.run.warm_source import source_of

        source_of(loaded.init_from)
    tasks = ", ".join(task.name for task in loaded.tasks)
    print(f"{file}: valid; run {loaded.name!r}, tasks {tasks}, {loaded.model.title} on {loaded.data.path}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configuration files, for editors."""
    from dlrm_mtl.config.load import json_schema

    print(json_schema())


@bundle_app.command("verify")
def bundle_verify(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The folder that `export` wrote.")],
) -> None:
    """Check every byte of a bundle, those of its tables too; exit code 2 if one was changed, with the file and the page."""
    from dlrm_mtl.console import console
    from dlrm_mtl.core.memory import size_text
    from dlrm_mtl.serve.bundle import verify_bundle

    version, size = verify_bundle(Path(bundle))
    console().print(f"{bundle}: version {version}, {size_text(size)} checked", soft_wrap=True, markup=False)


@data_app.command("describe")
def data_describe(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The data set's folder, which holds dataset.yaml.")],
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page with plots to this file, too.")] = None,
    split: Annotated[
        str | None, typer.Option(help="The split that features are described over. Default: train.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory to use; what does not fit goes to temporary files.")] = "2GB",
) -> None:
    """Show what is in a data set: rows, label rates, and how the values of every feature are spread."""
    from dlrm_mtl.reports.dataset_report import describe_dataset

    describe_dataset(folder, html, split, memory)


def _speaks() -> bool:
    """True if this process prints for all processes of its host."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


class _Remarks(logging.Handler):
    """Shows what the package logs: remarks plainly on the first process's standard output, warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, above the progress bar if there is one."""
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            print(text, file=sys.stderr, flush=True)
        elif os.environ.get("RANK", "0") == "0":
            console = sys.modules.get("dlrm_mtl.console")  # without it there is no bar
            say = console.say if console else functools.partial(print, flush=True)
            say(text)


def _show_remarks() -> None:
    """Let the package's logger print, once, however often the command line is called in a process."""
    logger = logging.getLogger("dlrm_mtl")
    if not any(isinstance(handler, _Remarks) for handler in logger.handlers):
        logger.addHandler(_Remarks())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def main() -> None:
    """Run the command line; a user's mistake is printed as it is and leaves with exit code 2."""
    # Whole lines, also under a launcher that asks Python not to buffer: lines of two processes must not mix.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)
    # Of a lost connection PyTorch prints the stacks of its own C++ functions, beside the exception.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    code = 0
    _show_remarks()
    try:
        for argument in sys.argv[1:]:
            refuse_secrets(argument)
        with extras_named():
            app()
    except UserError as error:
        if _speaks() or error.local:
            print(f"error: {error}", file=sys.stderr, flush=True)
        code = EXIT_CODE
    except PeerLostError as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr, flush=True)
        code = 1
    finally:
        # A model keeps its process group, and both lie in cycles: gloo's threads would run on while the interpreter ends, which
        # now and then aborts the process.
        gc.collect()
    sys.exit(code)
