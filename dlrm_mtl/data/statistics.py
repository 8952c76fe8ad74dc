"""Writing of ``dataset.yaml``, with statistics of the training split computed out of core by DuckDB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import yaml
from pyarrow.fs import LocalFileSystem

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.sql import file_literal
from dlrm_mtl.data.dataset import list_files
from dlrm_mtl.data.spec import (
    DATASET_FILE,
    DatasetSpec,
    DenseStatistics,
    FeatureSpec,
    LabelSpec,
    SparseStatistics,
    SplitSpec,
)


def describe(folder: Path, spec: DatasetSpec, *, training_split: str = "train") -> DatasetSpec:
    """Fill in rows and statistics from the Parquet files in ``folder`` and write ``folder/dataset.yaml``.

    ``spec`` names splits, features and labels; its statistics, if any, are replaced. Returns the completed specification.
    Raises :class:`UserError` if the files cannot be read or a column is missing.
    """
    if training_split not in spec.splits:
        raise UserError(
            f"{folder}: there is no split {training_split!r} to take statistics from; there are: {', '.join(spec.splits)}."
        )
    with duckdb.connect(config={"threads": 1}) as connection:  # one thread: sums in a fixed order
        splits = {name: _count(connection, folder, split) for name, split in spec.splits.items()}
        source = _source(folder, spec.splits[training_split])
        types = {str(row[0]): str(row[1]) for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
        for column in [*(feature.source for feature in spec.features), *(label.source for label in spec.labels)]:
            if column not in types:
                raise UserError(
                    f"{folder}: split {training_split!r} has no column {column!r}; there are: {', '.join(types)}."
                )
        features = [_describe_feature(connection, source, feature, types[feature.source]) for feature in spec.features]
        labels = [_describe_label(connection, source, label) for label in spec.labels]
    complete = spec.model_copy(update={"splits": splits, "features": features, "labels": labels})
    write_spec(folder / DATASET_FILE, complete)
    return complete


def write_spec(path: Path, spec: DatasetSpec) -> None:
    """Write ``spec`` as YAML, one line per feature and label."""
    content = spec.model_dump(exclude_none=True)
    features, labels = content.pop("features"), content.pop("labels")
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    for key, entries in (("features", features), ("labels", labels)):
        lines = [f"- {_one_line(entry)}" for entry in entries]
        text += f"{key}:\n" + "\n".join(lines) + "\n" if lines else f"{key}: []\n"
    path.write_text(text, encoding="utf-8")


def _one_line(entry: dict[str, Any]) -> str:
    return str(
        yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, default_flow_style=True, width=1_000_000)
    ).strip()


def _source(folder: Path, split: SplitSpec) -> str:
    """SQL of the rows of a split, from the same files as the reader."""
    place = folder / split.folder
    paths = list_files(LocalFileSystem(), str(place)) if place.is_dir() else []
    if not paths:
        raise UserError(f"{place}: cannot be read (there is no Parquet file); it must hold Parquet files.")
    return f"read_parquet([{', '.join(file_literal(path) for path in paths)}], hive_partitioning = false)"


def _one_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)


def _count(connection: duckdb.DuckDBPyConnection, folder: Path, split: SplitSpec) -> SplitSpec:
    try:
        (rows,) = _one_row(connection, f"SELECT count(*) FROM {_source(folder, split)}")
    except duckdb.Error as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{folder / split.folder}: cannot be read ({problem}); it must hold Parquet files.") from None
    return split.model_copy(update={"rows": rows})


def _describe_feature(
    connection: duckdb.DuckDBPyConnection, source: str, feature: FeatureSpec, type_: str
) -> FeatureSpec:
    column = '"' + feature.source.replace('"', '""') + '"'
    statistics: DenseStatistics | SparseStatistics
    if feature.kind == "dense":
        number = f"CAST({column} AS DOUBLE)"
        mean, std, low, high, nulls = _one_row(
            connection,
            f"""SELECT avg({number}), stddev_pop({number}), min({number}), max({number}), count(*) - count({column})
            FROM {source}""",
        )
        values = [_round(value) for value in (mean, std, low, high)]
        statistics = DenseStatistics(mean=values[0], std=values[1], min=values[2], max=values[3], nulls=nulls)
    elif type_.endswith("]"):
        distinct, coverage, length = _one_row(
            connection,
            f"""SELECT (SELECT count(DISTINCT id) FROM (SELECT unnest({column}) AS id FROM {source}) WHERE id <> 0),
            avg(CASE WHEN len(list_filter({column}, lambda id: id <> 0)) > 0 THEN 1.0 ELSE 0.0 END),
            avg(coalesce(len({column}), 0)) FROM {source}""",
        )
        statistics = SparseStatistics(distinct=distinct, coverage=_round(coverage), mean_length=_round(length))
    else:
        distinct, coverage, length = _one_row(
            connection,
            f"""SELECT count(DISTINCT {column}) FILTER ({column} <> 0), avg(CASE WHEN {column} <> 0 THEN 1.0 ELSE 0.0 END),
            avg(CASE WHEN {column} IS NULL THEN 0.0 ELSE 1.0 END) FROM {source}""",
        )
        statistics = SparseStatistics(distinct=distinct, coverage=_round(coverage), mean_length=_round(length))
    return feature.model_copy(update={"statistics": statistics})


def _describe_label(connection: duckdb.DuckDBPyConnection, source: str, label: LabelSpec) -> LabelSpec:
    column = '"' + label.source.replace('"', '""') + '"'
    (mean,) = _one_row(connection, f"SELECT avg(CAST({column} AS DOUBLE)) FROM {source}")
    return label.model_copy(update={"mean": _round(mean)})


def _round(value: float | None) -> float:
    """Round to six significant digits, the same on every machine."""
    return float(f"{value or 0.0:.6g}")
