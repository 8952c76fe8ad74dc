"""AliExpress in the layout of MTReclib, one folder per country, loaded as the table ``rows``.

A folder ``AliExpress_NL`` (and so on) has ``train.csv`` and ``test.csv``, comma-separated with a header: search_id,
categorical_1..16 (integers), numerical_1..63, click, conversion.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import duckdb

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.common.duck import find_files, insert_csv, one_row

CATEGORIES = [f"categorical_{i}" for i in range(1, 17)]
NUMBERS = [f"numerical_{i}" for i in range(1, 64)]
LABELS = ["click", "conversion"]


def load(connection: duckdb.DuckDBPyConnection, folder: Path, country: int, validation_share: float) -> tuple[int, int]:
    """Append a country's files to the table rows; returns the first and the end of the rows for validation."""
    ends = []
    for part in ("train", "test"):
        paths = find_files(folder, [f"*{part}*.csv"], f"one AliExpress {part}ing file")
        if len(paths) > 1:
            raise UserError(
                f"{folder}: has {', '.join(path.name for path in paths)}; leave one {part}ing file in it, or name "
                "--countries."
            )
        columns = _columns(paths[0])
        selected = ", ".join(
            [
                f"CAST({country} AS INTEGER) AS country",
                f"{part == 'test'} AS test",
                *("search_id", *LABELS, *CATEGORIES, *NUMBERS),
            ]
        )
        insert_csv(connection, "rows", paths, columns, selected, options="header = true, delim = ',', quote = '\"'")
        ends.append(one_row(connection, "SELECT count(*) FROM rows")[0])
    start = one_row(connection, f"SELECT count(*) FROM rows WHERE country < {country}")[0]
    return ends[0] - round(validation_share * (ends[0] - start)), ends[0]


def _columns(path: Path) -> dict[str, str]:
    """Columns of a file, in its order, and their types; raises :class:`UserError` if one is missing."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            header = [name.strip() or f"unnamed_{place}" for place, name in enumerate(next(csv.reader(file), []))]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download the file again.") from None
    missing = [name for name in ("search_id", *CATEGORIES, *NUMBERS, *LABELS) if name not in header]
    if missing:
        raise UserError(
            f"{path}: its header lacks {missing[0]} ({len(missing)} columns in all); is it of MTReclib's layout?"
        )
    types = dict.fromkeys(["search_id", *CATEGORIES], "BIGINT") | dict.fromkeys(NUMBERS, "FLOAT")
    return {name: {**types, **dict.fromkeys(LABELS, "TINYINT")}.get(name, "VARCHAR") for name in header}
