"""Data sets from any CSV or Parquet files and a description file, out of core with DuckDB."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import read_yaml, validate
from dlrm_mtl.data.dataset import read_again, read_yaml_file, unreachable
from dlrm_mtl.data.spec import DATASET_FILE, DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.data.statistics import describe, write_spec
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE
from dlrm_mtl.prepare import ready
from dlrm_mtl.prepare.common.io import Progress, output_folder, work_beside
from dlrm_mtl.prepare.table.columns import (
    numbered_features,
    plain_columns,
    skipped_lines,
    source_columns,
    write_split,
)
from dlrm_mtl.prepare.table.description import FileSplit, TableDescription
from dlrm_mtl.prepare.table.files import load
from dlrm_mtl.prepare.table.find import FileSplits, files_of_splits, find_files
from dlrm_mtl.prepare.table.ids import Ids, number_values, write_vocabularies
from dlrm_mtl.prepare.table.like import prepare_like
from dlrm_mtl.prepare.table.recipe import write_recipe
from dlrm_mtl.prepare.table.splits import create_splits
from dlrm_mtl.prepare.table.values import verify_literals
from dlrm_mtl.storage.filesystems import is_local, locate


@register("adapter", "table")
def prepare(
    input: Annotated[
        list[Path] | None, typer.Option(help="CSV (plain or .gz) or Parquet file, or folder of them. May be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write, new or empty; with --infer, the description file to write.")
    ] = None,
    *,
    description: Annotated[
        str | None,
        typer.Option(
            metavar="<path>", help="YAML file (path or URI) that says what the columns are; --infer drafts one."
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="Data set (path or URI) that prepare table wrote: make the rows like its own, in place of a description.",
        ),
    ] = None,
    infer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draft a description of this file or folder, and do nothing else."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="With --infer: the names of the columns of a CSV file without a header."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that may be used, such as 4GB. Default: 80% of the machine's."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores. The result is the same.")] = None,
    progress: Progress = lambda what, done: None,
) -> str:
    """Your own CSV or Parquet files, described by a small YAML file that --infer drafts.

    Returns what is to be said at the end. Raises :class:`UserError` for anything wrong in the description or the files.
    """
    if infer is not None:
        if input or description is not None or like is not None:
            raise UserError(
                "prepare table: --infer drafts a description, and takes no --input, --description or --like; remove them."
            )
        from dlrm_mtl.prepare.table.infer import write_draft

        return write_draft(infer, output, None if columns is None else _names(columns))
    if columns is not None:
        raise UserError(
            "prepare table: --columns goes with --infer; otherwise source.columns in the description names them."
        )
    if description is not None and like is not None:
        raise UserError(
            "prepare table: --like has the description of its data set, and --description is another; remove one."
        )
    for option, value in (("--input", input), ("--output", output), ("--description", description or like)):
        if not value:
            raise UserError(f"prepare table: {option} is required; add it, or draft a description with --infer FILE.")
    assert input
    assert output is not None
    if like is not None:
        return "\n".join(prepare_like(input, output, like, memory, threads, progress))
    assert description is not None
    remarks = prepare_table(input, output, read_description(description), memory, threads, progress)
    return "\n".join([ready(output), *remarks])


def _names(columns: str) -> list[str]:
    """The names in a line such as `user,item,"price, EUR"`."""
    names = [name.strip() for name in next(csv.reader([columns], skipinitialspace=True), [])]
    if not names or not all(names) or len(set(names)) != len(names):
        raise UserError(f"--columns {columns}: these are no names, each once, with commas between; correct them.")
    return names


def read_description(path: str | Path) -> TableDescription:
    """Read and validate a description file, path or URI; raises :class:`UserError`."""
    filesystem, inside = locate(path)
    if is_local(filesystem):
        return validate(TableDescription, read_yaml(Path(inside)), str(path))
    if not read_again(lambda: filesystem.get_file_info(inside).is_file, filesystem, str(path), unreachable):
        raise UserError(f"{path}: there is no such file; check --description.")
    content = read_yaml_file(filesystem, inside)
    return validate(TableDescription, content, str(path))


def prepare_table(
    inputs: list[Path],
    output: Path,
    description: TableDescription,
    memory: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda what, done: None,
) -> list[str]:
    """Write the data set to the folder ``output``, all or nothing; returns remarks for the user.

    Rows keep the order of the files. Raises :class:`UserError`.
    """
    split = description.split
    found = find_files(inputs, description.source, every=isinstance(split, FileSplit))
    files, splits_of_files = found.files, FileSplits({}, {})
    if isinstance(split, FileSplit):
        splits_of_files = files_of_splits(files, inputs, split.files, split.divide)
        files = splits_of_files.files
    with output_folder(output) as folder, work_beside(output, memory, threads) as (work, connection):
        table = load(
            connection,
            work,
            files,
            description.source,
            parquet=found.parquet,
            wanted=source_columns(description),
            progress=lambda done: progress("reading the files", 0.3 * done),
        )
        progress("checking numbers and labels", 0.3)
        columns = plain_columns(table, description)
        for config in description.labels:
            verify_literals(table, config)
        counts = create_splits(table, description, splits_of_files)
        ids = number_values(
            table,
            numbered_features(description),
            description.source.nulls,
            lambda name, done: progress(f"numbering {name}", 0.4 + 0.3 * done),
        )
        for position, name in enumerate(counts):
            progress(f"writing {name}", 0.7 + 0.2 * position / len(counts))
            write_split(table, description.written, ids, columns, name, folder)
        write_vocabularies(table, ids, folder / VOCABULARIES_FILE)
        write_recipe(folder, table, description)
        progress("describing", 0.9)
        complete = describe(folder, _specification(description, ids, counts))
        plain = {feature.name for feature in description.used if not feature.standardise}
        if plain:
            features = [f.model_copy(update={"statistics": None}) if f.name in plain else f for f in complete.features]
            complete = complete.model_copy(update={"features": features})
            write_spec(folder / DATASET_FILE, complete)
    progress("done", 1.0)
    passed_over = found.without_split(files) if isinstance(split, FileSplit) else found.remarks
    return [*passed_over, *skipped_lines(table), *_constant(complete)]


def _specification(description: TableDescription, ids: Ids, counts: dict[str, int]) -> DatasetSpec:
    features = [
        FeatureSpec(
            name=feature.name,
            kind="dense" if feature.kind == "dense" else "sequence" if feature.kind == "sequence" else "sparse",
            description=feature.description,
            vocabulary_size=ids.sizes.get(feature.name),
            vocabulary=feature.vocabulary_of,
            fingerprint=ids.fingerprints.get(feature.name),
            transform=feature.number_transform,
        )
        for feature in description.used
    ]
    labels = [
        LabelSpec(name=config.name, kind=config.kind, description=config.description or config.where)
        for config in description.labels
    ]
    return DatasetSpec(
        name=description.name,
        description=description.description,
        licence=description.licence,
        citation=description.citation,
        splits={name: SplitSpec(folder=name, rows=count) for name, count in counts.items()},
        features=features,
        labels=labels,
    )


def _constant(spec: DatasetSpec) -> list[str]:
    return [
        f"remark: label {one.name!r} is {'never' if one.mean == 0 else 'always'} 1 in the training rows, nothing to learn"
        for one in spec.labels
        if one.kind == "binary" and one.mean in (0.0, 1.0)
    ]
