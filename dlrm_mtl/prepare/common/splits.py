"""Splits as SQL expressions for the name of each row's split, independent of machine and number of threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import duckdb

from dlrm_mtl.core.sql import quote
from dlrm_mtl.prepare.common.ids import HASH_BITS, hash_text_sql, one_row


def random_split(key: str, shares: Mapping[str, float], *, seed: int = 0) -> str:
    """SQL of a row's split, drawn by a hash of ``key``: rows with equal keys are in one split.

    Args:
        key: SQL of a text that identifies rows: the number of the row, or the user to keep users together.
        shares: fraction of each split; they add up to 1. The actual fractions differ by chance.
        seed: seed of the draws.
    """
    drawn = hash_text_sql(f"{quote(f'{seed}:split:')} || {key}")
    names = list(shares)
    reached, cases = 0.0, []
    for name in names[:-1]:
        reached += shares[name]
        cases.append(f"WHEN {drawn} < {round(reached * 2**HASH_BITS)} THEN {quote(name)}")
    return _case(cases, names[-1])


def time_split(time: str, cuts: Mapping[str, str], first: str = "train") -> str:
    """SQL of a row's split by time: ``first`` before all cuts, then each split of ``cuts`` from its cut on.

    Args:
        time: SQL of the time of a row.
        cuts: SQL of the start of each later split, in the order of time, of the type of ``time``.
        first: name of the split before all cuts.
    """
    names = [first, *cuts]
    cases = [f"WHEN {time} < {cut} THEN {quote(name)}" for name, cut in zip(names, cuts.values(), strict=False)]
    return _case(cases, names[-1])


def time_cuts(
    connection: duckdb.DuckDBPyConnection, source: str, time: str, shares: Mapping[str, float]
) -> dict[str, str]:
    """Cuts for :func:`time_split` that give each split its fraction of the rows of ``source``, in the order of time.

    Rows of the same time are never divided: all go to the later split. Sorts out of core.
    """
    row = one_row(connection, f"SELECT count(*), typeof(any_value({time})) FROM {source}")
    rows, type_ = int(row[0]), str(row[1])
    names = list(shares)
    cuts, reached = {}, 0.0
    for before, name in itertools.pairwise(names):
        reached += shares[before]
        position = min(math.floor(reached * rows + 0.5), rows - 1)
        cut = one_row(
            connection,
            f"SELECT CAST({time} AS VARCHAR) FROM {source} ORDER BY {time} LIMIT 1 OFFSET {max(position, 0)}",
        )
        cuts[name] = f"CAST({quote(cut[0])} AS {type_})"
    return cuts


def range_split(row: str, ranges: Sequence[tuple[str, int]]) -> str:
    """SQL of a row's split by its number: each entry is a split and the number of the first row after it.

    Entries are in the order of rows; a split may occur more than once.
    """
    cases = [f"WHEN {row} < {end} THEN {quote(name)}" for name, end in ranges[:-1]]
    return _case(cases, ranges[-1][0])


def in_order(first: int, second: int) -> dict[str, str]:
    """SQL conditions of train, validation and test by ``rowid``: before ``first``, before ``second``, and from there on."""
    return {
        "train": f"rowid < {first}",
        "validation": f"rowid >= {first} AND rowid < {second}",
        "test": f"rowid >= {second}",
    }


def _case(cases: Sequence[str], otherwise: str) -> str:
    return f"CASE {' '.join(cases)} ELSE {quote(otherwise)} END" if cases else quote(otherwise)
