"""The files of the EHCF paper for Taobao: pairs of user and item per behaviour, with separate test purchases.

``buy.train.txt`` and ``buy.test.txt`` and, for other behaviours, ``cart.csv`` and ``pv.csv``, tab-separated with a header;
any of them may begin with ``ehcf_`` and end in ``.gz``. There are no times and no categories.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.common.duck import find_files, insert_csv

FILES = {"pv": "pv.csv", "cart": "cart.csv", "buy": "buy.train.txt"}
TEST = "buy.test.txt"
NUMBERS = {"pv": 0, "cart": 1, "buy": 3}

SOURCE = "Taobao UserBehavior as in the EHCF paper"
CITATION = """\
Chong Chen, Min Zhang, Yongfeng Zhang, Weizhi Ma, Yiqun Liu, Shaoping Ma. Efficient Heterogeneous Collaborative Filtering \
without Negative Sampling for Recommendation. AAAI 2020. https://doi.org/10.1609/aaai.v34i01.5329"""


def present(folder: Path) -> tuple[str, ...]:
    """Behaviours with files in ``folder``; raises :class:`UserError` if purchases are missing."""
    for name in (FILES["buy"], TEST):
        _find(folder, name)
    others = [name for name, file in FILES.items() if name != "buy" and any(folder.glob(f"*{file}*"))]
    return (*others, "buy")


def load(connection: duckdb.DuckDBPyConnection, folder: Path, names: list[str]) -> None:
    """Make the tables events (as from the raw log, with category and time null) and given (user, item): the test pairs.

    Raises :class:`UserError` if a file is malformed.
    """
    for name in names:
        selected = f"user, item, CAST(NULL AS INTEGER) AS category, CAST({NUMBERS[name]} AS TINYINT) AS behaviour, "
        _insert(connection, "events", _find(folder, FILES[name]), selected + "CAST(NULL AS BIGINT) AS time")
    _insert(connection, "given", _find(folder, TEST), "user, item")
    connection.execute(f"INSERT INTO events SELECT user, item, NULL, {NUMBERS['buy']}, NULL FROM given")


def _insert(connection: duckdb.DuckDBPyConnection, table: str, path: Path, selected: str) -> None:
    columns = {"user": "INTEGER", "item": "INTEGER"}
    if path.name.removesuffix(".gz").endswith(".csv"):
        columns["behaviour_name"] = "VARCHAR"
    insert_csv(connection, table, [path], columns, selected, options="header = true, delim = '\t', quote = ''")


def _find(folder: Path, name: str) -> Path:
    paths = find_files(folder, [name, f"ehcf_{name}"], f"the EHCF file {name}")
    if len(paths) > 1:
        raise UserError(f"{folder}: has {paths[0].name} and {paths[1].name}; keep one of them.")
    return paths[0]
