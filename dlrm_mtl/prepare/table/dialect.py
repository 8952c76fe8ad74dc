"""Guessing the dialect of a CSV file: its encoding, separator, header, and lines before it, from its first bytes."""

from __future__ import annotations

import codecs
import csv
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.table.files import open_raw

GUESSED_BYTES = 65536
"""Number of bytes from which the dialect of a CSV file is guessed."""

LINES = 200
MOST_BEFORE = 20
"""Largest number of lines before the header, such as a title."""

MISSING = {"", "?", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "\\n", "-", "--", ".", "inf", "-inf", "missing"}
"""Common texts for a missing value, in lower case."""

_NUMBER = re.compile(r"\s*[-+]?[\d.,:/eE-]+\s*")
_DECIMAL = re.compile(r"\s*[-+]?[\d.]*\d,\d+\s*")
_DATE = re.compile(r"\s*\d{4}-\d\d-\d\d")


@dataclass
class Dialect:
    """The ``source`` of a description, and remarks on its uncertain parts."""

    source: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    named: bool = True
    """True if columns have names other than c0, c1 and so on."""


def guess_dialect(path: Path, columns: Sequence[str] | None = None) -> Dialect:
    """Guess the dialect of the CSV file ``path`` from its first 64 kB.

    Args:
        path: the file.
        columns: names of its columns, for a file without a header.

    Raises:
        UserError: the file cannot be read or is empty, or has another number of columns.
    """
    found = Dialect()
    lines = _lines(_text(path, found.source))
    if not any(lines):
        raise UserError(f"{path}: there are no rows; write the data there.")
    separator = _guess_separator([line for line in lines if line][:LINES])
    rows = [(position, _fields(line, separator)) for position, line in enumerate(lines) if line][:LINES]
    usual = _usual(rows)
    skip = 0
    while rows[skip][0] < MOST_BEFORE and skip < len(rows) - 1 and not _fits(rows[skip][1], usual, skip, rows):
        skip += 1
    first, body = [field_.strip() for field_ in rows[skip][1]], [row for _, row in rows[skip + 1 :]]
    before = rows[skip][0]
    if before:
        found.source["skip"] = before
        found.remarks.append(f"the first {'line' if before == 1 else f'{before} lines'} before the table passed over")
    if separator != ",":
        found.source["separator"] = separator
    blanks = sum(field_ != field_.strip() for row in [*body, first] for field_ in row if field_.strip())
    if separator != " " and blanks > 0.1 * sum(len(row) for row in body):
        found.source["strip"] = True
    _name_columns(path, found, first, body, usual, list(columns) if columns else None, before)
    return found


def _name_columns(
    path: Path,
    found: Dialect,
    first: list[str],
    body: Sequence[list[str]],
    usual: int,
    columns: list[str] | None,
    before: int,
) -> None:
    header = _is_header(first, body)
    if columns is not None:
        if len(columns) != usual:
            raise UserError(
                f"--columns: there are {len(columns)} names, and {path} has {usual} columns; its first line is "
                f"{', '.join(first)[:200]}."
            )
        if first == columns:
            return
        if header:
            found.remarks.append("the first line looks like a header, and is read as a row, as --columns says")
        found.source.update(header=False, columns=columns)
    elif header and len(first) == usual - 1:
        found.source.update(header=False, skip=before + 1, columns=["row_name", *first])
        found.remarks.append(
            "the header has a name less than the rows have fields: the first is taken for a row's name"
        )
    elif header:
        if "" in first:
            place = "first" if first[0] == "" else "last" if first[-1] == "" else f"{first.index('') + 1}th"
            why = "an index, as pandas writes it" if first[0] == "" else "nothing, or without a name"
            found.remarks.append(f"the {place} column has no name and is left out: {why}")
    else:
        found.source.update(header=False, columns=[f"c{position}" for position in range(usual)])
        found.named = False
        found.remarks.append("no header was found: name the columns in order with --columns a,b,c")


def _text(path: Path, source: dict[str, Any]) -> str:
    try:
        with open_raw(path) as stream:
            content = stream.read(GUESSED_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); it may be truncated or damaged.") from None
    text = ""
    encodings = ["utf-16"] if content.startswith((b"\xff\xfe", b"\xfe\xff")) else ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(content)  # skips half a character at the end
        except UnicodeDecodeError:
            continue
        if encoding != "utf-8-sig":
            source["encoding"] = encoding
        break
    if len(content) == GUESSED_BYTES:
        text = text[: text.rfind("\n") + 1] or text
    return text


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\n|\r", text)[: LINES + MOST_BEFORE]


def _fields(line: str, separator: str) -> list[str]:
    if len(separator) > 1:
        return [part.strip('"') for part in line.split(separator)]
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=False), [])
    except csv.Error:
        return line.split(separator)


def _usual(rows: Sequence[tuple[int, list[str]]]) -> int:
    counts = Counter(len(row) for _, row in rows)
    return max(counts, key=lambda count: (counts[count], count))


def _fits(row: list[str], usual: int, position: int, rows: Sequence[tuple[int, list[str]]]) -> bool:
    """Return True if a line may be the header or the first row: it has the usual number of fields, or one less."""
    if len(row) == usual or usual == 1:
        return True
    following = rows[position + 1][1]
    return len(row) == usual - 1 and len(following) == usual and all(_is_name(name) for name in row) and usual > 2


def _guess_separator(lines: Sequence[str]) -> str:
    """Separator that cuts most lines into the same number of fields; among equals, the larger number wins."""

    def merit(separator: str) -> tuple[float, int]:
        counts = [len(_fields(line, separator)) - 1 for line in lines]
        usual = max(set(counts), key=lambda count: (counts.count(count), count))
        return (counts.count(usual) / len(counts) if usual else 0.0, usual)

    merits = {separator: merit(separator) for separator in ("::", "\t", ",", ";", "|")}
    best = max(merits, key=lambda separator: (round(merits[separator][0], 1), merits[separator][1]))
    if best == ",":
        # Commas that occur only in numbers are not separators if another separator cuts the lines equally.
        for other in ("\t", ";", "|"):
            fields = [part for line in lines for part in _fields(line, other) if "," in part]
            if merits[other][0] > 0.9 and all(_DECIMAL.fullmatch(part) for part in fields):
                return other
    if not merits[best][1]:
        share, usual = merit(" ")
        best = " " if share > 0.9 and usual else ","
    return best


def _is_header(first: Sequence[str], body: Sequence[list[str]]) -> bool:
    """Return True if the first line names the columns: its fields look like names, and do not occur again below."""
    known = [name for name in first if name]
    if not known or len(set(known)) != len(known):
        return False
    columns = [{row[position].strip() for row in body if position < len(row)} for position in range(len(first))]
    repeated = any(name in values for name, values in zip(first, columns, strict=True) if name and not _is_value(name))
    changes = any(
        name.lower() not in MISSING
        and not _is_value(name)
        and (numbers := values - {value for value in values if value.lower() in MISSING})
        and all(_NUMBER.fullmatch(value) for value in numbers)
        for name, values in zip(first, columns, strict=True)
    )
    counted = (
        known == [str(position) for position in range(len(known))] and len(known) > 2
    )  # pandas' names for the columns of an array
    inside = list(first)
    while inside and not inside[0]:
        del inside[0]
    while inside and not inside[-1]:
        del inside[-1]
    names = all(_is_name(name) for name in inside)
    return counted or (not repeated and (names or (changes and len(inside) == len(first))))


def _is_value(field_: str) -> bool:
    return bool(_NUMBER.fullmatch(field_) or _DATE.match(field_))


def _is_name(field_: str) -> bool:
    return bool(field_.strip()) and not _is_value(field_) and field_.isprintable()
