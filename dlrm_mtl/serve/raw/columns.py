"""Raw columns of tables and of mappings: plain Arrow arrays, one for each type of value."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.file_checks import is_list
from dlrm_mtl.serve.raw.texts import Refuse, plain
from dlrm_mtl.serve.rows import shown

Ints = NDArray[np.int64]
Group = tuple[pa.Array, Ints | None]
"""Values of one type and their places; None for all places in order."""
_LISTS = (list, tuple, np.ndarray)
_SCALARS = (str, bool, int, float, Decimal, datetime.date, bytes, np.generic)


@dataclass(frozen=True)
class Elements:
    """Values of a raw column: one for each row, or the entries of its lists."""

    groups: list[Group]
    count: int
    """Number of values."""
    lengths: Ints | None = None
    """[N] number of values of each row; None if every row has one and is no list."""
    lists: NDArray[np.bool_] | None = None
    """[N] mask of the rows with lists; with ``lengths``."""

    def gather(self, convert: Callable[[pa.Array, Refuse], pa.Array], refuse: Refuse) -> pa.Array:
        """Converted values of all groups, in their places; ``refuse`` makes errors from places."""
        parts = [convert(array, _at(places, refuse)) for array, places in self.groups]
        if len(parts) == 1 and self.groups[0][1] is None:
            return parts[0]
        order = np.concatenate([places for _, places in self.groups if places is not None])
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_arrays(parts).take(pa.array(back))

    def row(self, place: int) -> int:
        """Row of a value."""
        return place if self.lengths is None else int(np.searchsorted(np.cumsum(self.lengths), place, side="right"))

    def rows(self, chosen: Ints) -> Elements:
        """Values of the ``chosen`` rows, ascending, which are all lists or all single values."""
        assert self.lengths is not None
        assert self.lists is not None
        stay = np.zeros(len(self.lengths), np.bool_)
        stay[chosen] = True
        kept = np.repeat(stay, self.lengths)
        now = np.cumsum(kept) - 1
        groups: list[Group] = []
        for array, places in self.groups:
            own = np.arange(self.count) if places is None else places
            inside = kept[own]
            if inside.any() or places is None:
                groups.append((array.filter(pa.array(inside)), now[own[inside]] if places is not None else None))
        listed = bool(self.lists[chosen].any())
        lengths = self.lengths[chosen] if listed else None
        return Elements(groups, int(kept.sum()), lengths, self.lists[chosen] if listed else None)


def _at(places: Ints | None, refuse: Refuse) -> Refuse:
    return refuse if places is None else lambda number, problem: refuse(int(places[number]), problem)


def elements_of_array(array: pa.Array) -> Elements:
    """Values of a column of a table."""
    array = plain(array)
    if not is_list(array.type):
        return Elements([(array, None)], len(array))
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = plain(array.flatten())
    return Elements([(flat, None)], len(flat), lengths, np.ones(len(array), np.bool_))


def elements_of_values(values: Sequence[Any], refuse: Refuse) -> Elements:
    """Values of a field of mappings.

    Raises:
        UserError: a value is neither a single one nor a list.
    """
    if not any(issubclass(class_, _LISTS) for class_ in set(map(type, values))):
        return Elements(_groups(values, refuse), len(values))
    flat: list[Any] = []
    lists = np.fromiter((isinstance(value, _LISTS) for value in values), np.bool_, len(values))
    lengths = np.ones(len(values), np.int64)
    for row, value in enumerate(values):
        if lists[row]:
            lengths[row] = len(value)
            flat += value
        else:
            flat.append(value)
    ends = np.cumsum(lengths)

    def refuse_row(place: int, problem: str) -> UserError:
        return refuse(int(np.searchsorted(ends, place, side="right")), problem)

    return Elements(_groups(flat, refuse_row), len(flat), lengths, lists)


def _groups(values: Sequence[Any], refuse: Refuse) -> list[Group]:
    classes = set(map(type, values))
    classes.discard(type(None))
    if len(classes) <= 1:
        return [(_array(values, next(iter(classes), None), refuse), None)]
    places: dict[type, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(type(value), []).append(place)
    groups: list[Group] = []
    for class_, own in places.items():
        at = np.array(own, np.int64)
        groups.append((_array([values[place] for place in own], class_, _at(at, refuse)), at))
    return groups


def _array(values: Sequence[Any], class_: type | None, refuse: Refuse) -> pa.Array:
    """Values of one class, or None, as an array."""
    if class_ is None or class_ is type(None):
        return pa.nulls(len(values))
    if not issubclass(class_, _SCALARS):
        at = next(place for place, value in enumerate(values) if value is not None)
        raise refuse(at, f"{shown(values[at])}, which is no value of a column; give a text, a number or a list of them")
    try:
        return plain(pa.array(values, from_pandas=False))
    except OverflowError:  # integers of more than 64 bits
        return _long_integers(values, refuse)
    except (pa.ArrowException, ValueError, TypeError):
        return _one_by_one(values, refuse)


def _long_integers(values: Sequence[Any], refuse: Refuse) -> pa.Array:
    texts = []
    for place, value in enumerate(values):
        try:
            texts.append(None if value is None else str(value))
        except ValueError:  # Python writes no integers of thousands of digits
            raise refuse(place, "an integer of too many digits; correct it") from None
    return pa.array(texts, pa.string())


def _one_by_one(values: Sequence[Any], refuse: Refuse) -> pa.Array:
    """The error for the first value that is none for itself; otherwise the texts of all."""
    for place, value in enumerate(values):
        try:
            pa.array([value])
        except (pa.ArrowException, ValueError, TypeError):
            raise refuse(place, f"{shown(value)}, which cannot be read; correct it") from None
    raise refuse(0, "values that do not fit together; write them alike")
