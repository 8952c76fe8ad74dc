"""What the first rows of a user's table say about its columns."""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.sql import quote
from dlrm_mtl.prepare.common.ids import one_row
from dlrm_mtl.prepare.table.files import Table, open_raw
from dlrm_mtl.prepare.table.values import is_list, number

GUESSED_BYTES = 65536
"""The dialect of a CSV file is guessed from so many bytes."""

SEPARATORS = ["|", ";", ",", " "]
"""What entries of a list may be separated by, the likeliest first."""


@dataclass(frozen=True)
class Column:
    """What the first rows say about one column."""

    name: str
    type: str
    nulls: float
    """Share of nulls."""
    distinct: int
    numeric: bool
    integral: bool
    low: float
    high: float
    common: tuple[str, ...]
    """The two most frequent values."""
    dates: bool
    separator: str | None
    """What its values are lists by."""
    entries: float
    """Mean number of entries by the separator."""

    @property
    def words(self) -> str:
        """The name in lower case with underscores between words."""
        return re.sub(r"\W+", "_", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", self.name)).lower().strip("_")

    @property
    def binary(self) -> bool:
        """Whether it is 0 and 1, or true and false, only."""
        return self.distinct == 2 and (
            (self.integral and (self.low, self.high) == (0, 1))
            or self.type == "BOOLEAN"
            or {value.lower() for value in self.common} == {"true", "false"}
        )


def guess_source(path: Path) -> dict[str, object]:
    """The ``source`` of a description that reads the CSV file ``path``, guessed from its first 64 kB."""
    try:
        with open_raw(path) as stream:
            content = stream.read(GUESSED_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); it may be truncated or damaged.") from None
    source: dict[str, object] = {}
    text = ""
    encodings = ["utf-16"] if content.startswith((b"\xff\xfe", b"\xfe\xff")) else ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(content)  # passes over half a character at the end
        except UnicodeDecodeError:
            continue
        if encoding != "utf-8-sig":
            source["encoding"] = encoding
        break
    if len(content) == GUESSED_BYTES:
        text = text[: text.rfind("\n") + 1] or text
    lines = [line for line in text.splitlines() if line][:200]
    if not lines:
        raise UserError(f"{path}: there are no rows; write the data there.")
    source["separator"] = separator = _guess_separator(lines)
    first = [field.strip('"') for field in lines[0].split(separator)]
    named = all(_is_name(field) for field in first) and len(set(first)) == len(first)
    if not named:
        source["header"] = False
        source["columns"] = [f"c{position}" for position in range(len(first))]
    if separator == ",":
        del source["separator"]
    return source


def _guess_separator(lines: Sequence[str]) -> str:
    """The one that cuts most lines into the same number of fields, the more the better."""

    def merit(separator: str) -> tuple[float, int]:
        counts = [line.count(separator) for line in lines]
        usual = max(set(counts), key=lambda count: (counts.count(count), count))
        return (counts.count(usual) / len(counts) if usual else 0.0, usual)

    merits = {separator: merit(separator) for separator in ("::", "\t", ",", ";", "|")}
    best = max(merits, key=lambda separator: (round(merits[separator][0], 1), merits[separator][1]))
    return best if merits[best][1] else ","


def _is_name(field: str) -> bool:
    return bool(field.strip()) and not re.fullmatch(r"\s*[-+]?[\d.,:/eE-]+\s*", field) and field.isprintable()


def look(table: Table, name: str) -> Column:
    """Look at one column of the rows that are loaded."""
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
    common = table.connection.execute(
        f"SELECT {plain} FROM rows WHERE {column} IS NOT NULL GROUP BY ALL ORDER BY count(*) DESC, 1 LIMIT 2"
    ).fetchall()
    numeric = known > 0 and numbers == known
    separator, entries = None, 1.0
    if not numeric and type_ == "VARCHAR" and times < known:
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
        entries,
    )


def _are_lists(table: Table, column: str, separator: str, distinct: int) -> bool:
    """Whether parts by ``separator`` come again in other values, as entries of lists do more than the words of a sentence."""
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
    """Whether values are digits and spaces: other texts with spaces are taken for names."""
    row = one_row(table.connection, f"SELECT bool_and(regexp_matches({column}, '^[0-9 ]*$')) FROM rows")
    return bool(row and row[0])
