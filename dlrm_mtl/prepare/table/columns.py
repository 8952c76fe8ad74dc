"""From a loaded table to Parquet: columns of a description, their SQL, and the files of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlrm_mtl.core.sql import identifier, quote
from dlrm_mtl.prepare.table.description import FeatureConfig, TableDescription, TimeSplit, UserSplit
from dlrm_mtl.prepare.table.files import Table
from dlrm_mtl.prepare.table.ids import Ids
from dlrm_mtl.prepare.table.values import dense, id_checks, label, verify

ROW_GROUP_ROWS = 65536


def source_columns(description: TableDescription, *, split: bool = True) -> list[str]:
    """Names of the table's columns that are read; those that divide it into splits only if ``split`` is set."""
    columns = [feature.source for feature in (*description.used, *description.kept)]
    for config in description.labels:
        columns += sorted(config.columns)
    if split and isinstance(description.split, (TimeSplit, UserSplit)):
        columns.append(description.split.column)
    return columns


def numbered_features(description: TableDescription) -> list[FeatureConfig]:
    """Features whose values become ids."""
    return [feature for feature in description.used if feature.kind != "dense"]


def plain_columns(table: Table, description: TableDescription) -> dict[str, str]:
    """SQL of every column without ids, by name: dense features, kept columns, labels.

    Raises:
        UserError: a value does not fit the description of its column; the message names the first such row.
    """
    checks, columns = [], {}
    for feature in description.used:
        if feature.kind == "dense":
            columns[feature.name], needed = dense(table, feature)
            checks += needed
        else:
            checks += id_checks(table, feature)
    for config in description.labels:
        columns[config.name], needed = label(table, config)
        checks += needed
    verify(table, checks)
    return columns | {feature.name: _as_it_is(table, feature.source) for feature in description.kept}


def _as_it_is(table: Table, name: str) -> str:
    """Cast a column to a type of Parquet: DuckDB would write 128-bit integers as DOUBLE."""
    column = table.column(name)
    return f"CAST({column} AS DECIMAL(38, 0))" if table.types[name] == "HUGEINT" else column


def write_split(
    table: Table, names: Sequence[str], ids: Ids, plain: Mapping[str, str], split: str, folder: Path
) -> None:
    """Write the rows of one split, in the order of the table.

    Args:
        table: the rows; the table ``splits`` (split) is beside it.
        names: of the columns, in order.
        ids: of the columns that hold ids.
        plain: SQL of the other columns.
        split: name of the split, and of its folder.
        folder: of the data set.
    """
    columns = {**ids.columns, **plain}
    selected = ", ".join(f"{columns[name]} AS {identifier(name)}" for name in names)
    joined = " POSITIONAL JOIN ".join(["rows", "splits", *ids.tables])
    path = folder / split / "part-00000.parquet"
    path.parent.mkdir()
    table.connection.execute(
        f"COPY (SELECT {selected} FROM {joined} WHERE splits.split = {quote(split)}) TO {quote(str(path))} "
        f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
    )


def skipped_lines(table: Table) -> list[str]:
    """Remarks on malformed lines that were skipped."""
    return [
        f"remark: {path}: {count:,} malformed {'line was' if count == 1 else 'lines were'} skipped, the first is line {first}"
        + (f"; {table.behind[path]:,} of them lie behind a quote that is not closed" if table.behind.get(path) else "")
        for path, (count, first) in table.skipped.items()
    ]
