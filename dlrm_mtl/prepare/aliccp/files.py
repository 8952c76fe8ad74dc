"""Ali-CCP's files, loaded as tables with a list of raw ids per field.

Four files without a header, with comma-separated fields: ``sample_skeleton_train.csv`` and ``..._test.csv`` (sample id,
click, conversion, index of common features, number of features, features) and ``common_features_train.csv`` and
``..._test.csv`` (index, number of features, features). Features are entries of field, id and value, separated by the
characters 2 and 3, with the character 1 between entries; a field may occur several times. The values, which are weights,
are dropped.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.common.duck import find_files, insert_csv, one_row
from dlrm_mtl.prepare.common.preparation import refuse_rows

COMMON = ("101", "109_14", "110_14", "127_14", "150_14", "121", "122", "124", "125", "126", "127", "128", "129")
"""Fields of the common features: the user, their earlier clicks and purchases, and their attributes."""
OWN = ("205", "206", "207", "210", "216", "301", "508", "509", "702", "853")
"""Fields of an impression: item, category, shop, intentions, brand, place, and the user's history with them."""


def load(
    connection: duckdb.DuckDBPyConnection, input: Path, part: str, own: list[str], common: list[str], max_list: int
) -> None:
    """Make the tables skeleton_PART (in the file's order) and common_PART, with a list of raw ids per field.

    Raises :class:`UserError` if a file is missing or malformed.
    """
    options = "header = false, delim = ',', quote = '', max_line_size = 16777216"
    (path,) = find_files(input, [f"sample_skeleton_{part}.csv"], "the impressions of Ali-CCP")[:1]
    columns = dict.fromkeys(("sample", "click", "conversion"), "BIGINT") | {"common": "VARCHAR"}
    columns |= {"count": "INTEGER", "features": "VARCHAR"}
    labels = """sample, CAST(click AS TINYINT) AS click, CASE WHEN click = 1 THEN CAST(conversion AS TINYINT) END AS conversion,
    CASE WHEN click = 0 AND conversion = 1 THEN 1 ELSE 0 END AS strange"""
    selected = ", ".join([labels, f"{_number('common')} AS common", *(_ids_of(name, max_list) for name in own)])
    insert_csv(connection, f"skeleton_{part}", [path], columns, selected, options=options)
    wrong = "sample IS NULL OR click IS NULL OR click NOT IN (0, 1) OR conversion NOT IN (0, 1)"
    what = "no sample id or a label other than 0 and 1; download the file again."
    refuse_rows(connection, f"skeleton_{part}", wrong, path, what)
    (path,) = find_files(input, [f"common_features_{part}.csv"], "the common features of Ali-CCP")[:1]
    columns = {"common": "VARCHAR", "count": "INTEGER", "features": "VARCHAR"}
    selected = ", ".join([f"{_number('common')} AS number", *(_ids_of(name, max_list) for name in common)])
    insert_csv(connection, f"common_{part}", [path], columns, selected, options=options)
    rows, distinct = one_row(connection, f"SELECT count(*), count(DISTINCT number) FROM common_{part}")
    if rows != distinct:
        raise UserError(f"{path}: has {rows - distinct:,} rows whose index came before; download the file again.")


def _number(text: str) -> str:
    """SQL of 63 bits of the md5 sum of an index, which is a text of 16 or more hexadecimal digits."""
    return f"CAST(md5_number_lower({text}) >> 1 AS BIGINT)"


def _ids_of(field: str, max_list: int) -> str:
    pattern = f"(?:^|\x01){field}\x02([0-9]+)\x03"
    return f"CAST(regexp_extract_all(features, '{pattern}', 1)[:{max_list}] AS BIGINT[]) AS \"{field}\""


def longest(connection: duckdb.DuckDBPyConnection, field: str, own: bool) -> int:
    """Largest number of values of ``field`` in a row, of an impression (``own``) or of common features."""
    table = "skeleton" if own else "common"
    parts = [f'SELECT max(len("{field}")) AS n FROM {table}_{part}' for part in ("train", "test")]
    return one_row(connection, f"SELECT max(n) FROM ({' UNION ALL '.join(parts)})")[0]
