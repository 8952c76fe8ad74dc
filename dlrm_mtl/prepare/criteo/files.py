"""Criteo's files, in two layouts, loaded as the table ``rows``.

The raw layout is the Kaggle challenge's ``train.txt`` and the terabyte's ``day_0`` to ``day_23``: label, I1..I13, C1..C26,
tab separated, any field but the label may be empty, and empty fields at the end of a line may be missing. Counts become
sign(x) ln(1 + abs(x)); an empty count stays null (read as the mean), and so does an empty category (no id).

The indexed layout is the small set of the DeepLight code: a training and a test file of label and 39 comma separated
indices; it holds the 13 counts as categories, so all 39 become categories.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.common.duck import find_files, insert_csv, one_row
from dlrm_mtl.prepare.common.preparation import refuse_rows
from dlrm_mtl.prepare.common.splits import in_order

COUNTS = [f"I{i}" for i in range(1, 14)]
CATEGORIES = [f"C{i}" for i in range(1, 27)]


def load_raw(
    connection: duckdb.DuckDBPyConnection,
    input: Path,
    files: str | None,
    split: str,
    validation_share: float,
    test_share: float,
) -> dict[str, str]:
    """Make the table rows in the order of the files; returns the condition of each split.

    Raises :class:`UserError` if a file is missing or malformed.
    """
    if files is not None:
        paths = find_files(input, [files], files)
    else:
        what = "Criteo's train.txt or day_0, day_1, ..."
        whole = any((input / f"train.txt{ending}").is_file() for ending in ("", ".gz"))
        paths = find_files(input, ["train.txt"] if whole else ["day_*[0-9]"], what)
    paths.sort(key=_day)
    columns = {"click": "INTEGER", **dict.fromkeys(COUNTS, "INTEGER"), **dict.fromkeys(CATEGORIES, "VARCHAR")}
    selected = ", ".join(
        [
            "CAST(click AS TINYINT) AS click",
            *COUNTS,
            *(f"CAST('0x' || {name} AS BIGINT) AS {name}" for name in CATEGORIES),
        ]
    )
    options = "header = false, delim = '\t', quote = '', null_padding = true"
    rows = [0]
    for path in paths:
        insert_csv(connection, "rows", [path], columns, selected, options=options)
        rows.append(one_row(connection, "SELECT count(*) FROM rows")[0])
    refuse_rows(connection, "rows", *_no_label(paths[0]))
    if split == "last-day":
        if len(paths) < 2:
            raise UserError(f"{input}: has one file, {paths[0].name}; --split last-day needs several, use shares.")
        return in_order(rows[-2], (rows[-2] + rows[-1] + 1) // 2)
    return in_order(*(rows[-1] - round(share * rows[-1]) for share in (validation_share + test_share, test_share)))


def load_indexed(connection: duckdb.DuckDBPyConnection, input: Path, validation_share: float) -> dict[str, str]:
    """Make the table rows from the indexed files; returns the condition of each split.

    Validation is the end of the training file.
    """
    names = [*COUNTS, *CATEGORIES]
    columns = dict.fromkeys(["click", *names], "INTEGER")
    selected = ", ".join(["CAST(click AS TINYINT) AS click", *(f"CAST({name} AS BIGINT) AS {name}" for name in names)])
    rows = []
    for what in ("train", "test"):
        paths = find_files(input, [f"*indexed_{what}*.csv", f"{what}.csv"], f"DeepLight's {what}ing file")
        insert_csv(connection, "rows", paths[:1], columns, selected, options="header = false, delim = ',', quote = ''")
        refuse_rows(connection, "rows", *_no_label(paths[0]))
        rows.append(one_row(connection, "SELECT count(*) FROM rows")[0])
    return in_order(rows[0] - round(validation_share * rows[0]), rows[0])


def _no_label(path: Path) -> tuple[str, Path, str]:
    """Arguments of :func:`refuse_rows` for rows without a label in the training file ``path``."""
    what = "a label other than 0 and 1 (first column); is this the training file?"
    return "click IS NULL OR click NOT IN (0, 1)", path, what


def _day(path: Path) -> tuple[int, str]:
    digits = path.name.removesuffix(".gz").rpartition("_")[2]
    return (int(digits) if digits.isdigit() else 0, path.name)
