"""Guessing the label and time columns of a user's table."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from dlrm_mtl.prepare.table.guess import Column
from dlrm_mtl.prepare.table.values import is_list

FEW_DAYS = 50
"""Number of distinct values above which whole numbers without a name are assumed to be times."""

LABEL = re.compile(
    r"(^|_)(label|target|y|click(ed)?|like(d)?|bought|buy|purchase(d)?|conversion|converted|order(ed)?|cart|favou?rite|follow(ed)?"
    r"|share(d)?|comment(ed)?|forward(ed)?|hate(d)?|install(ed)?|finish(ed)?|long_view|rating|stars|income|outcome|survived|churn(ed)?|default(ed)?)$"
)
TIME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|day|dt)($|_)|_at$|_(time|date)_ms$")
PLAIN_NUMBER = re.compile(r"[-+]?(\d{1,300}\.?\d*|\.\d+)([eE][-+]?\d{1,2})?")
"""Pattern of finite numbers that a condition can contain."""
LOWEST_SECONDS, HIGHEST_SECONDS = 631152000, 4102444800
"""Integers from 1990 to 2100 that are assumed to be times if their column's name suggests it."""


def find_labels(columns: Sequence[Column], headless: bool, remarks: list[str]) -> dict[str, list[dict[str, str]]]:
    """Probable labels of each column, by the column's name; doubts are appended to ``remarks``.

    Without column names, and if no name suggests a label, the last column with two values is assumed to be one, or the
    first with 0 and 1.
    """
    if not headless:
        named = {
            column.name: entries for column in columns if LABEL.search(column.words) and (entries := _label(column))
        }
        if named:
            return named
    first, last = columns[0], columns[-1]
    if headless and first.binary and not is_time(first, headless):
        remarks.append(f"{first.name!r}, the first column, holds 0 and 1 only and is taken for the label")
        return {first.name: _label(first)}
    if last.distinct == 2 and not is_time(last, headless) and (entries := _label(last)):
        remarks.append(f"{last.name!r}, the last column, has two values and is taken for the label")
        return {last.name: entries}
    return {}


def _label(column: Column) -> list[dict[str, str]]:
    if column.separator or is_list(column.type):
        return []
    entry = {"name": column.name}
    if column.binary:
        return [entry]
    if column.numeric and re.search(r"rating|stars|score", column.words) and column.high > 1:
        threshold = column.low + 0.75 * (column.high - column.low)
        if math.isfinite(threshold):
            threshold = round(threshold) if column.integral else threshold
            condition = f"{_name(column.name)} >= {threshold:g}"
            return [{"name": f"good_{column.words}", "where": condition}, {**entry, "kind": "real"}]
    rarer = column.common[1] if column.distinct == 2 else ""
    if rarer and not ('"' in rarer and "'" in rarer):
        mark = "'" if '"' in rarer else '"'
        plain = column.numeric and not column.padded and PLAIN_NUMBER.fullmatch(rarer)
        value = rarer if plain else f"{mark}{rarer}{mark}"
        return [{**entry, "where": f"{_name(column.name)} == {value}"}]
    return []


def is_time(column: Column, headless: bool) -> bool:
    """Return True if a column holds times: dates, or numbers that seem to be times by their size and name."""
    if column.type.startswith(("DATE", "TIMESTAMP")) or (column.dates and column.distinct > 1):
        return True
    if not column.integral:
        return False
    scale = 1000 if column.high > HIGHEST_SECONDS else 1
    seconds = LOWEST_SECONDS * scale <= column.low and column.high <= HIGHEST_SECONDS * scale
    days = column.low >= 19900101 and column.high <= 21001231  # such as 20240131
    return bool((seconds or days) and (TIME.search(column.words) or (headless and column.distinct > FEW_DAYS)))


def _name(name: str) -> str:
    return (
        name
        if re.fullmatch(r"[^\W\d]\w*", name) and name not in ("and", "or", "not", "in", "is", "null")
        else f"`{name}`"
    )
