"""Values of a raw column as the texts that become ids: single ones, or the entries of lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from dlrm_mtl.serve.raw.columns import Elements
from dlrm_mtl.serve.raw.description import RawFeature
from dlrm_mtl.serve.raw.lists import Entries, cut, keep, split
from dlrm_mtl.serve.raw.texts import Refuse, is_in, texts, without, without_fraction


def entries_of(feature: RawFeature, nulls: Sequence[str], elements: Elements, refuse: Refuse) -> tuple[Entries, bool]:
    """Texts of every row.

    Args:
        feature: description of the column.
        nulls: texts that mean a missing value.
        elements: values of the column.
        refuse: maker of errors, from rows.

    Returns:
        Texts, and True if every row has exactly one, which may be null.

    Raises:
        UserError: a value has no text.
    """
    lists = elements.lists
    if lists is None:
        single = feature.separator is None and not feature.listed
        return _of_single_values(feature, nulls, elements, refuse), single
    if lists.all():
        return _of_lists(feature, nulls, elements, refuse), False
    rows = [np.flatnonzero(~lists), np.flatnonzero(lists)]
    singles, listed = elements.rows(rows[0]), elements.rows(rows[1])
    parts = [
        _of_single_values(feature, nulls, singles, lambda row, problem: refuse(int(rows[0][row]), problem)),
        _of_lists(feature, nulls, listed, lambda row, problem: refuse(int(rows[1][row]), problem)),
    ]
    return _merged(parts, rows), False


def _of_single_values(feature: RawFeature, nulls: Sequence[str], elements: Elements, refuse: Refuse) -> Entries:
    """Texts of rows that hold no lists; entries of texts with a separator."""
    if feature.separator is not None:
        return _split(feature, nulls, elements, refuse)

    def convert(array: pa.Array, refuse: Refuse) -> pa.Array:
        found = texts(array, refuse)
        if not pt.is_string(array.type):
            return found
        found = without(found, nulls)
        return without_fraction(found) if feature.whole else found

    values = elements.gather(convert, refuse)
    return Entries(values, np.ones(elements.count, np.int64))


def _split(feature: RawFeature, nulls: Sequence[str], elements: Elements, refuse: Refuse) -> Entries:
    def convert(array: pa.Array, refuse: Refuse) -> pa.Array:
        found, are_texts = texts(array, refuse, by_value=False), pt.is_string(array.type)
        entries = split(without(found, nulls) if are_texts else found, feature)
        entries = keep(entries, ~is_in(entries.values, {"", *nulls}))
        values = without_fraction(entries.values) if are_texts and feature.whole else entries.values
        offsets = np.concatenate([[0], np.cumsum(entries.lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    lists = elements.gather(convert, refuse)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return cut(Entries(lists.flatten(), lengths), feature.max_length, last=feature.kind == "sequence")


def _of_lists(feature: RawFeature, nulls: Sequence[str], elements: Elements, refuse: Refuse) -> Entries:
    """Entries of lists."""
    absent = {"", *nulls}

    def convert(array: pa.Array, refuse: Refuse) -> pa.Array:
        if pt.is_temporal(array.type):
            raise refuse(0, f"a list of {array.type}; give lists of integers or texts")
        found = without(texts(array, refuse), absent)
        return without_fraction(found) if feature.whole and pt.is_string(array.type) else found

    values = elements.gather(convert, lambda place, problem: refuse(elements.row(place), problem))
    assert elements.lengths is not None
    entries = keep(Entries(values, elements.lengths), values.is_valid().to_numpy(zero_copy_only=False))
    return cut(entries, feature.max_length, last=feature.kind == "sequence")


def _merged(parts: Sequence[Entries], rows: Sequence[NDArray[np.int64]]) -> Entries:
    """Entries of several sets of rows, in the order of the rows."""
    row_of = np.concatenate([np.repeat(own, part.lengths) for own, part in zip(rows, parts, strict=True)])
    lengths = np.empty(sum(map(len, rows)), np.int64)
    for own, part in zip(rows, parts, strict=True):
        lengths[own] = part.lengths
    values = pa.concat_arrays([part.values for part in parts])
    return Entries(values.take(pa.array(np.argsort(row_of, kind="stable"))), lengths)
