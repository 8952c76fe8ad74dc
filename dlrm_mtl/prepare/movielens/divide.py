"""Division of MovieLens' ratings into splits."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.common.ids import one_row
from dlrm_mtl.prepare.common.splits import random_split, time_cuts, time_split

CS330_ROWS, CS330_TRAINING_ROWS, CS330_SEED = 100_000, 95_000, 123


class RatingSplit(str, Enum):
    """Methods of dividing ratings."""

    random = "random"
    time = "time"
    user = "user"
    cs330 = "cs330"


def cs330_training_rows() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The 95,000 training rows of Stanford's CS330 homework on MovieLens 100K, in its order; the first row of u.data is 0."""
    return np.random.RandomState(CS330_SEED).permutation(CS330_ROWS)[:CS330_TRAINING_ROWS].astype(np.int64)


def divide(
    connection: duckdb.DuckDBPyConnection, split: RatingSplit, shares: dict[str, float], seed: int, path: Path
) -> dict[str, int]:
    """Add the column split to ratings; returns the number of rows of each split.

    Raises :class:`UserError`, which names the file ``path``, if a split is empty, or does not fit.
    """
    row = one_row(connection, "SELECT count(*) FROM ratings")
    rows = int(row[0])
    if split is RatingSplit.cs330:
        if rows != CS330_ROWS:
            raise UserError(
                f"{path}: --split cs330 is for the {CS330_ROWS:,} ratings of MovieLens 100K, not {rows:,}; use another."
            )
        connection.register("chosen", pa.table({"row": cs330_training_rows()}))
        connection.execute("CREATE TABLE training AS FROM chosen")
        expression = "CASE WHEN row IN (SELECT row FROM training) THEN 'train' ELSE 'test' END"
    elif split is RatingSplit.time:
        expression = time_split("time", time_cuts(connection, "ratings", "time", shares))
    else:
        expression = random_split("row" if split is RatingSplit.random else "user", shares, seed=seed)
    connection.execute(f"CREATE TABLE divided AS SELECT *, {expression} AS split FROM ratings")
    counts = dict(connection.execute("SELECT split, count(*) FROM divided GROUP BY split").fetchall())
    names = ["train", "test"] if split is RatingSplit.cs330 else list(shares)
    empty = next((name for name in names if not counts.get(name)), None)
    if empty is not None:
        raise UserError(f"{path}: split {empty!r} gets none of the {rows} ratings; change the shares.")
    return {name: int(counts[name]) for name in names}
