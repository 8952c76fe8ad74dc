"""Split of each row, according to the description of a user's table."""

from __future__ import annotations

import itertools

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.sql import quote, text_time
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.prepare.common.ids import one_row
from dlrm_mtl.prepare.common.splits import random_split, range_split, time_cuts, time_split
from dlrm_mtl.prepare.table.description import FileSplit, RandomSplit, TableDescription, TimeSplit, UserSplit
from dlrm_mtl.prepare.table.files import Table
from dlrm_mtl.prepare.table.find import FileSplits
from dlrm_mtl.prepare.table.values import Check, id_text, number, verify


def create_splits(table: Table, description: TableDescription, files: FileSplits) -> dict[str, int]:
    """Create the table ``splits`` (split), one row for each row of ``rows``; returns the number of rows of each split.

    ``files`` gives the split of each file, for splits by files. Raises :class:`UserError` if a split would be empty.
    """
    split = description.split
    if isinstance(split, RandomSplit):
        expression = random_split("rowid", split.shares, seed=split.seed)
    elif isinstance(split, UserSplit):
        _known(table, split.column)
        expression = random_split(f"coalesce({id_text(table, split.column)}, '')", split.shares, seed=split.seed)
    elif isinstance(split, FileSplit):
        expression = _by_file(table, files, split.seed)
    else:
        expression = _by_time(table, split)
    table.connection.execute(f"CREATE TABLE splits AS SELECT {expression} AS split FROM rows")
    counts = dict(table.connection.execute("SELECT split, count(*) FROM splits GROUP BY split").fetchall())
    empty = next((name for name in description.split_names if not counts.get(name)), None)
    if empty is not None:
        raise UserError(
            f"{table.files[0]}: split {empty!r} gets none of the {table.rows} rows; change split in the description."
        )
    return {name: int(counts[name]) for name in description.split_names}


def _by_file(table: Table, files: FileSplits, seed: int) -> str:
    cases = []
    for position, path in enumerate(table.files):
        shares = files.divided.get(path)
        split = quote(files.whole[path]) if shares is None else random_split("rowid", shares, seed=seed)
        cases.append(f"WHEN '{position}' THEN {split}")
    file = range_split("rowid", [(str(position), end) for position, end in enumerate(table.ends)])
    return f"CASE {file} {' '.join(cases)} END"


def _by_time(table: Table, split: TimeSplit) -> str:
    time = _time(table, split)
    if split.shares is not None:
        return time_split(time, time_cuts(table.connection, "rows", time, split.shares), next(iter(split.shares)))
    cuts = {}
    type_ = _type(table, time)
    for name, cut in (split.cuts or {}).items():
        read = f"TRY_CAST({quote(cut)} AS {type_})" if type_ == "DOUBLE" else text_time(quote(cut))
        row = one_row(table.connection, f"SELECT CAST({read} AS VARCHAR)")
        if row[0] is None:
            kind = "number" if type_ == "DOUBLE" else "date"
            raise UserError(
                f"split.cuts.{name}: {cut!r} is no {kind}, as the times in column {split.column!r} are; correct it."
            )
        cuts[name] = f"CAST({quote(str(row[0]))} AS {type_})"
    for (earlier, one), (later, other) in itertools.pairwise(cuts.items()):
        row = one_row(table.connection, f"SELECT {one} < {other}")
        if not row[0]:
            raise UserError(
                f"split.cuts: {later!r} does not begin after {earlier!r}; put the cuts in the order of time."
            )
    return time_split(time, cuts)


def _time(table: Table, split: TimeSplit) -> str:
    """SQL of the time, as DOUBLE if all values are numbers, otherwise as TIMESTAMP; raises :class:`UserError`."""
    _known(table, split.column)
    column, type_ = table.column(split.column), table.types[split.column]
    if type_.startswith(("DATE", "TIMESTAMP")):
        time = f"CAST({column} AS TIMESTAMP)"
    elif type_ != "VARCHAR":
        time = number(table, split.column)
    else:
        time = number(table, split.column)
        row = one_row(table.connection, f"SELECT count({time}) * 2 < count({column}) FROM rows")
        if row[0]:
            time = text_time(f"trim({column})")
    finite = f"({time} IS NULL OR NOT isfinite({time}))"
    problem = "which is no time that split.column needs: a number, or a date such as 2024-01-31 or 2024-01-31 18:30:00"
    verify(table, [Check(finite, split.column, problem)])
    return time


def _type(table: Table, time: str) -> str:
    row = one_row(table.connection, f"SELECT typeof({time}) FROM rows LIMIT 1")
    return str(row[0])


def _known(table: Table, column: str) -> None:
    type_ = table.types.get(column)
    if type_ is None:
        raise UserError(f"split.column: there is no column {column!r}; {suggest(column, table.types)}.")
    if type_.endswith("]") or type_.startswith(("STRUCT", "MAP", "TIME ", "INTERVAL")) or type_ == "TIME":
        raise UserError(
            f"split.column: column {column!r} has type {type_}; name one with single numbers, texts or times."
        )
