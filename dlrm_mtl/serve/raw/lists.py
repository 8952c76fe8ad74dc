"""Lists of raw values: entries of texts and of columns of lists, as texts."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dlrm_mtl.serve.raw.description import RawFeature
from dlrm_mtl.serve.raw.numbers import trimmed

_NOTHING = ("none", "nan", "null", "<na>")
_SPACE = r"\t\n\f\r "


@dataclass
class Entries:
    """Entries of lists as texts."""

    values: pa.Array
    """[number of entries] strings, without nulls."""
    lengths: NDArray[np.int64]
    """[N]"""


def split(texts: pa.Array, feature: RawFeature) -> Entries:
    """Entries of lists in texts, [N] strings; null has none."""
    separator = str(feature.separator)
    if feature.brackets:
        lists: list[list[str]] = [[] if text is None else bracketed(text, separator) for text in texts.to_pylist()]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        return Entries(pa.array([entry for entries in lists for entry in entries], pa.string()), lengths)
    parts = pc.split_pattern(texts, separator)
    lengths = pc.fill_null(pc.list_value_length(parts), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return Entries(parts.flatten(), lengths)


def bracketed(text: str, separator: str) -> list[str]:
    """Entries of a text such as `[1, 2]` or `['a', 'b']`; None, nan and null without quotes are not entries."""
    found = []
    for match in _pattern(separator).findall(text):
        if match[0] in "'\"":
            found.append(match[1:-1])
        elif trimmed(match).lower() not in _NOTHING:
            found.append(trimmed(match))
    return found


@functools.lru_cache
def _pattern(separator: str) -> re.Pattern[str]:
    mark = _SPACE if separator.isspace() else re.escape(separator)
    between = rf"[^{mark}\[\](){{}}]"
    quoted = r'"(?:[^"\\]|\\.)*"' + r"|'(?:[^'\\]|\\.)*'"
    return re.compile(rf"""{quoted}|[^{mark}{_SPACE}\[\](){{}}"']{between}*""")


def keep(entries: Entries, stay: NDArray[np.bool_]) -> Entries:
    """The entries that ``stay``, [number of entries]."""
    if stay.all():
        return entries
    return Entries(entries.values.filter(pa.array(stay)), lengths_of(entries.lengths, stay))


def lengths_of(lengths: NDArray[np.int64], stay: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths of lists of which some entries ``stay``."""
    counted = np.concatenate([[0], np.cumsum(stay, dtype=np.int64)])
    ends = np.cumsum(lengths)
    return counted[ends] - counted[ends - lengths]


def cut(entries: Entries, longest: int | None, last: bool) -> Entries:
    """Lists cut to their first ``longest`` entries, or to their last ones."""
    if longest is None or not len(entries.lengths) or entries.lengths.max() <= longest:
        return entries
    ends = np.cumsum(entries.lengths)
    place = np.arange(len(entries.values)) - np.repeat(ends - entries.lengths, entries.lengths)
    if last:
        place = np.repeat(entries.lengths, entries.lengths) - 1 - place
    return keep(entries, place < longest)
