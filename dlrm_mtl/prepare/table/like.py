"""New rows of a table, prepared like those of a data set: with its ids, transforms and statistics."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.sql import file_literal, quote
from dlrm_mtl.data.dataset import Dataset, open_dataset, read_again, unreachable
from dlrm_mtl.data.raw_source import RECIPE_FILE
from dlrm_mtl.data.spec import DATASET_FILE, SplitSpec
from dlrm_mtl.data.statistics import write_spec
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE
from dlrm_mtl.prepare.common.ids import vocabulary_fingerprint
from dlrm_mtl.prepare.common.io import Progress, output_folder, work_beside
from dlrm_mtl.prepare.table.columns import (
    numbered_features,
    plain_columns,
    skipped_lines,
    source_columns,
    write_split,
)
from dlrm_mtl.prepare.table.description import HashConfig, TableDescription
from dlrm_mtl.prepare.table.files import column_names, load
from dlrm_mtl.prepare.table.find import Found, find_files
from dlrm_mtl.prepare.table.ids import count_unknown, number_values
from dlrm_mtl.prepare.table.recipe import read_recipe
from dlrm_mtl.prepare.table.values import know_whole_numbers
from dlrm_mtl.storage.filesystems import is_local

SPLIT = "test"
"""Name of the only split, which `evaluate` reads by default."""


def prepare_like(
    inputs: list[Path],
    output: Path,
    like: str | Path,
    memory: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda what, done: None,
) -> list[str]:
    """Write raw rows as the split ``test`` of the data set ``output``, made like those of the data set ``like``.

    Rows keep the order of the files. Values that the vocabularies of ``like`` lack become id 0. Labels and kept columns whose
    columns the files lack are left out.

    Args:
        inputs: CSV or Parquet files, or folders of them.
        output: folder to write, all or nothing.
        like: folder of a data set that :func:`~dlrm_mtl.prepare.table.adapter.prepare_table` wrote, path or URI.
        memory: limit, such as 4GB.
        threads: default: all cores.
        progress: called with the name of a stage and the completed share.

    Returns:
        Remarks: where the rows are, missing columns, and the number of unknown values.

    Raises:
        UserError: the data set or the files cannot be used.
    """
    dataset = open_dataset(like, "--like")
    recipe = read_recipe(dataset)
    source = recipe.description.source
    with _where_source_stands(f"{dataset.path}/{RECIPE_FILE}"):
        found = find_files(inputs, source)
        description, left_out = _present(recipe.description, found)
    numbered = numbered_features(description)
    with (
        _where_source_stands(f"{dataset.path}/{RECIPE_FILE}"),
        output_folder(output) as folder,
        work_beside(output, memory, threads) as (work, connection),
    ):
        known = _load_vocabularies(connection, dataset, description, work)
        table = load(
            connection,
            work,
            found.files,
            source,
            parquet=found.parquet,
            wanted=source_columns(description, split=False),
            progress=lambda done: progress("reading the files", 0.4 * done),
        )
        know_whole_numbers(table, numbered, recipe.whole_numbers)
        progress("checking numbers and labels", 0.4)
        columns = plain_columns(table, description)
        connection.execute(f"CREATE TABLE splits AS SELECT {quote(SPLIT)} AS split FROM rows")
        ids = number_values(
            table,
            numbered,
            source.nulls,
            lambda name, done: progress(f"numbering {name}", 0.5 + 0.4 * done),
            known,
        )
        progress("writing", 0.9)
        write_split(table, description.written, ids, columns, SPLIT, folder)
        unknown = count_unknown(table, numbered, ids)
        labels = [label for label in dataset.spec.labels if label.source in description.written]
        splits = {SPLIT: SplitSpec(folder=SPLIT, rows=table.rows)}
        write_spec(folder / DATASET_FILE, dataset.spec.model_copy(update={"labels": labels, "splits": splits}))
    progress("done", 1.0)
    carried = "".join(f" --carry {shlex.quote(feature.name)}" for feature in description.kept)
    rows = shlex.quote(f"{output}/{SPLIT}")
    return [
        f"{output}: {table.rows:,} rows, made like those of {like}; score them with: "
        f"dlrm-mtl predict RUN --input {rows} --output predictions.parquet{carried}",
        *found.remarks,
        *skipped_lines(table),
        *left_out,
        *_unknown_values(unknown, like),
    ]


@contextmanager
def _where_source_stands(place: str) -> Iterator[None]:
    """Reword errors that advise to change ``source``: the user has no description of their own here."""
    try:
        yield
    except UserError as error:
        if "source." not in str(error):
            raise
        raise UserError(f"{str(error).rstrip('.')}; source stands in {place}.") from None


def _present(description: TableDescription, found: Found) -> tuple[TableDescription, list[str]]:
    """The description without labels and kept columns whose columns a file lacks, and remarks on them."""
    lacking: dict[str, Path] = {}
    optional = {column for label in description.labels for column in label.columns}
    optional |= {feature.source for feature in description.kept}
    for path in found.files:
        names = column_names(path, description.source, parquet=found.parquet)
        for column in optional.difference(names):
            lacking.setdefault(column, path)
    kept = [feature for feature in description.kept if feature.source in lacking]
    gone = [label for label in description.labels if not label.columns.isdisjoint(lacking)]
    said = [
        f"remark: label {label.name!r} is left out: {lacking[column]} has no column {column!r}; predict needs no labels"
        for label in gone
        for column in sorted(label.columns.intersection(lacking))[:1]
    ]
    said += [
        f"remark: {feature.name!r} is not kept: {lacking[feature.source]} has no column {feature.source!r}"
        for feature in kept
    ]
    features = [feature for feature in description.features if feature not in kept]
    labels = [label for label in description.labels if label not in gone]
    return description.model_copy(update={"features": features, "labels": labels}), said


def _load_vocabularies(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, description: TableDescription, work: Path
) -> dict[str, str]:
    """A table (id, value, count) for each feature that owns a vocabulary by frequency; raises :class:`UserError`."""
    owners = [
        f for f in numbered_features(description) if not (f.vocabulary_of or isinstance(f.vocabulary, HashConfig))
    ]
    if not owners:
        return {}
    place = f"{dataset.path}/{VOCABULARIES_FILE}"
    path = Path(place)
    if not is_local(dataset.filesystem):
        path = work / VOCABULARIES_FILE
        read_again(
            lambda: fs.copy_files(
                place,
                str(path),
                source_filesystem=dataset.filesystem,
                destination_filesystem=fs.LocalFileSystem(),
            ),
            dataset.filesystem,
            place,
            unreachable,
        )
    again = f"it is not what `prepare table` wrote beside {RECIPE_FILE}: prepare the data set again"
    described = {feature.source: feature for feature in dataset.spec.features}
    tables = {}
    for number, feature in enumerate(owners):
        name = f"vocabulary_{number}"
        try:
            connection.execute(
                f"""CREATE TABLE {name} AS SELECT CAST(id AS INTEGER) AS id, CAST(value AS VARCHAR) AS value, count
                FROM read_parquet({file_literal(path)}) WHERE feature = {quote(feature.name)}"""
            )
        except duckdb.Error as error:
            problem = " ".join((str(error).splitlines() or [""])[0].split()).rstrip(".")
            raise UserError(f"{place}: cannot be read ({problem}); {again}.") from None
        found = described.get(feature.name)
        if found is not None and found.fingerprint != vocabulary_fingerprint(connection, name):
            raise UserError(
                f"{place}: feature {feature.name!r} has other values or ids than dataset.yaml says; {again}."
            )
        tables[feature.name] = name
    return tables


def _unknown_values(counts: dict[str, tuple[int, int]], like: str | Path) -> list[str]:
    return [
        f"remark: feature {name!r}: {unknown:,} of {values:,} values ({unknown / values:.1%}) are not in the vocabulary of "
        f"{like}, and have id 0, unknown"
        for name, (unknown, values) in counts.items()
        if unknown
    ]
