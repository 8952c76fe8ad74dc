"""Guesses about the columns of a user's table from its first rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dlrm_mtl.core.sql import quote
from dlrm_mtl.prepare.common.ids import one_row
from dlrm_mtl.prepare.table.dialect import MISSING, Dialect
from dlrm_mtl.prepare.table.files import Table
from dlrm_mtl.prepare.table.values import bracketed, is_list, number

PLAINLY_MISSING = ("?", "NaN", "nan", "NULL", "<NA>", "#N/A", "N/A", "\\N")
"""Texts for a missing value even in columns of texts."""

MOST_COUNTED = 2000
"""Largest number of distinct whole numbers in a column for counting the frequency of each."""

SEPARATORS = ["|", ";", ",", " "]
"""Possible separators of list entries, the likeliest first."""


@dataclass(frozen=True)
class Column:
    """Facts about one column from the first rows."""

    name: str
    type: str
    nulls: float
    """Fraction of nulls."""
    distinct: int
    numeric: bool
    integral: bool
    low: float
    high: float
    common: tuple[str, ...]
    """The two most frequent values."""
    dates: bool
    separator: str | None
    """Separator of entries, if its values are lists."""
    entries: float
    """Mean number of entries with this separator."""
    brackets: bool = False
    """True if its values are lists in brackets."""
    padded: bool = False
    """True if whole numbers have leading zeros, as in codes."""
    amounts: bool = False
    """True if its values are numbers with a currency or per cent sign."""
    zeros: float = 0.0
    """Fraction of 0 among the values that are not null."""
    graded: bool = False
    """True if neighbouring numbers are about equally frequent, or round ones more frequent, as for quantities."""

    @property
    def words(self) -> str:
        """Name in lower case with underscores between words."""
        return re.sub(r"\W+", "_", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", self.name)).lower().strip("_")

    @property
    def binary(self) -> bool:
        """True if it holds only 0 and 1, or only true and false."""
        return self.distinct == 2 and (
            (self.integral and (self.low, self.high) == (0, 1))
            or self.type == "BOOLEAN"
            or {value.lower() for value in self.common} == {"true", "false"}
        )


def refine(table: Table, found: Dialect) -> bool:
    """Add null texts and number formats of the loaded rows to ``found``; return True if any of them is new."""
    known = {"source": dict(found.source), "nulls": list(table.source.nulls)}
    nulls = list(known["nulls"])
    for name, type_ in table.types.items():
        if type_ == "VARCHAR" and name:
            nulls += [text for text in _missing(table, name) if text not in nulls]
    if nulls != known["nulls"]:
        found.source["nulls"] = nulls
        added = ", ".join(repr(text) for text in nulls if text)
        found.remarks.append(f"{added}: taken for missing values")
    for name, type_ in table.types.items():
        if type_ == "VARCHAR" and name and "decimal" not in found.source and "thousands" not in found.source:
            marks = _number_marks(table, name, nulls)
            found.source.update(marks)
            if marks:
                found.remarks.append(
                    f"column {name!r} has numbers as {_example(table, name)!r}; if these are lists, change it"
                )
    return found.source != known["source"]


def _missing(table: Table, name: str) -> list[str]:
    """Texts of a column for a missing value: all that are not numbers in a column of numbers, else well-known ones."""
    column, value = table.column(name), number(table, name)
    odd = f"{column} IS NOT NULL AND ({value} IS NULL OR NOT isfinite({value}))"
    rows = table.connection.execute(f"SELECT DISTINCT {column} FROM rows WHERE {odd} LIMIT 9").fetchall()
    texts = sorted(str(row[0]) for row in rows)
    (numbers,) = one_row(table.connection, f"SELECT count(*) FROM rows WHERE isfinite({value})")
    if texts and numbers and all(text.strip().lower() in MISSING for text in texts):
        return texts
    listed = ", ".join(quote(text) for text in PLAINLY_MISSING)
    rows = table.connection.execute(f"SELECT DISTINCT {column} FROM rows WHERE {column} IN ({listed})").fetchall()
    return sorted(str(row[0]) for row in rows)


def _number_marks(table: Table, name: str, nulls: Sequence[str]) -> dict[str, str]:
    """Decimal comma and separator of thousands of a column's numbers, if they have any; empty for plain numbers."""
    column = f"trim({table.column(name)})"
    known = f"FROM rows WHERE {column} NOT IN ({', '.join(quote(text) for text in nulls)})"
    patterns = {
        "plain": r"[-+]?\d*\.?\d*",
        "comma": r"[-+]?\d+(,\d+)?",
        "grouped": r"[-+]?\d{1,3}(,\d{3})*(\.\d+)?",
        "both": r"[-+]?(\d{1,3}(\.\d{3})*|\d+)(,\d+)?",
        "three": r"[-+]?\d+(,\d{3})?",
    }
    tests = ", ".join(f"bool_and(regexp_full_match({column}, {quote(pattern)}))" for pattern in patterns.values())
    plain, comma, grouped, both, three = one_row(table.connection, f"SELECT {tests} {known}")
    if plain is not False:
        return {}
    if grouped and (not comma or (three and table.source.separator == ",")):
        return {"thousands": ","}
    if comma:
        return {"decimal": ","}
    return {"decimal": ",", "thousands": "."} if both else {}


def _example(table: Table, name: str) -> str:
    column = table.column(name)
    return str(one_row(table.connection, f"SELECT min({column}) FROM rows WHERE {column} LIKE '%,%'")[0])


def look(table: Table, name: str) -> Column:
    """Examine one column of the loaded rows."""
    column, type_ = table.column(name), table.types[name]
    if is_list(type_) or type_.startswith(("STRUCT", "MAP")):
        return Column(name, type_, 0, 0, False, False, 0, 0, (), False, None, 0)
    value = number(table, name)
    plain = f"CAST({column} AS VARCHAR)"
    dates = f"TRY_CAST({plain} AS TIMESTAMP)"
    lists = ", ".join(
        f"avg(len(string_split({plain}, {quote(s)}))), count(*) FILTER (contains({plain}, {quote(s)}))"
        for s in SEPARATORS
    )
    integral = f"coalesce(bool_and({value} = floor({value}) AND abs({value}) < 1e18), false)"
    query = f"""SELECT count(*), count({column}), count(DISTINCT {column}), count({value}), {integral}, min({value}),
        max({value}), count({dates}), {lists} FROM rows"""
    rows, known, distinct, numbers, whole, low, high, times, *found = one_row(table.connection, query)
    bracketed_, padded, amounts, zeros = one_row(
        table.connection,
        f"""SELECT bool_and(regexp_full_match({plain}, {quote(_BRACKETS)})), bool_or(regexp_matches({plain}, '^0\\d')),
        bool_and(regexp_full_match({plain}, {quote(_AMOUNT)})), avg(CAST({value} = 0 AS INTEGER)) FROM rows""",
    )
    common = table.connection.execute(
        f"SELECT {plain} FROM rows WHERE {column} IS NOT NULL GROUP BY ALL ORDER BY count(*) DESC, 1 LIMIT 2"
    ).fetchall()
    numeric = known > 0 and numbers == known
    separator, entries = None, 1.0
    if type_ == "VARCHAR" and bracketed_:
        separator = _bracket_separator(table, column)
        lists = bracketed(plain, separator)
        (entries,) = one_row(table.connection, f"SELECT coalesce(avg(len({lists})), 0) FROM rows")
    elif not numeric and type_ == "VARCHAR" and times < known:
        for position, candidate in enumerate(SEPARATORS):
            if found[2 * position + 1] > 0.2 * max(known, 1) and _are_lists(table, column, candidate, distinct):
                separator, entries = candidate, float(found[2 * position] or 1)
                break
    dated = known > 0 and not numeric and times == known
    return Column(
        name,
        type_,
        1 - known / max(rows, 1),
        distinct,
        numeric,
        bool(whole) and numeric,
        float(low or 0),
        float(high or 0),
        tuple(str(entry[0]) for entry in common),
        dated,
        separator,
        float(entries),
        brackets=bool(bracketed_) and type_ == "VARCHAR",
        padded=bool(padded) and type_ == "VARCHAR" and bool(whole),
        amounts=bool(amounts) and not numeric,
        zeros=float(zeros or 0),
        graded=bool(whole) and numeric and _is_graded(table, value, distinct),
    )


_BRACKETS = r"\s*(\[[^{:]*\]|\([^:]*[,;][^:]*\)|\{[^:]*[,;][^:]*\})\s*"
_AMOUNT = r"\s*([$€£¥]\s*[-+]?\d[\d.,]*|[-+]?\d[\d.,]*\s*[$€£¥%])\s*"


def _bracket_separator(table: Table, column: str) -> str:
    """Separator of the entries of lists in brackets: a comma if there is any, else the first other one that occurs."""
    for separator in (",", ";", "|", " "):
        (found,) = one_row(
            table.connection, f"SELECT bool_or(contains(trim({column}, ' []'), {quote(separator)})) FROM rows"
        )
        if found:
            return separator
    return ","


def _is_graded(table: Table, value: str, distinct: int) -> bool:
    """Return True if whole numbers look like quantities: neighbours are equally frequent, or multiples of five stand out."""
    if not 20 <= distinct <= MOST_COUNTED:
        return False
    rows = table.connection.execute(
        f"SELECT {value} AS v, count(*) FROM rows WHERE {value} IS NOT NULL GROUP BY v ORDER BY v"
    ).fetchall()
    counts = {int(number_): int(count) for number_, count in rows}
    inner = sorted(counts)[1:-1]
    fives = range(inner[0] + -inner[0] % 5, inner[-1] + 1, 5)
    outstanding = sum(
        counts.get(five, 0) > (counts.get(five - 1, 0) + counts.get(five + 1, 0)) / 2 for five in fives[:MOST_COUNTED]
    )
    if len(fives) >= 6 and outstanding >= 0.85 * len(fives):
        return True
    beside = [(counts[one], counts[other]) for one, other in pairwise(inner) if other == one + 1]
    if len(beside) < 0.5 * distinct or distinct > 300:
        return False
    pairs = np.log1p(np.asarray(beside, np.float64))
    return bool(pairs.std(axis=0).min() > 0 and np.corrcoef(pairs.T)[0, 1] > 0.8)


def _are_lists(table: Table, column: str, separator: str, distinct: int) -> bool:
    """Return True if parts by ``separator`` recur in other values, as list entries do more than the words of a sentence."""
    row = one_row(
        table.connection,
        f"""SELECT count(DISTINCT part), count(part) FROM
        (SELECT unnest(string_split({column}, {quote(separator)})) AS part
         FROM (SELECT DISTINCT {column} FROM rows LIMIT 5000))""",
    )
    parts, occurrences = row
    least = 0.8 if separator in ("|", ";") else 0.5
    return bool(distinct > 2 and parts <= least * occurrences and (separator != " " or _digits(table, column)))


def _digits(table: Table, column: str) -> bool:
    """Return True if values are digits and spaces: other texts with spaces are assumed to be names."""
    row = one_row(table.connection, f"SELECT bool_and(regexp_matches({column}, '^[0-9 ]*$')) FROM rows")
    return bool(row and row[0])
