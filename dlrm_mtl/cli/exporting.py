"""Commands that write bundles and parts of them: ``export``, ``apply``, ``export-graph``, ``export-tables``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.cli.options import CheckpointName, Overrides, Plugins, RunPath
from dlrm_mtl.core.errors import UserError


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
