"""Golden raw rows: raw values of the data set's rows, found back from ids and numbers, and checked by reading them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.spec import FeatureSpec
from dlrm_mtl.data.vocabularies import Values
from dlrm_mtl.serve.raw.description import RawFeature, RawRows
from dlrm_mtl.serve.raw.lookup import UNKNOWN, ValueIds
from dlrm_mtl.serve.raw.reader import RawReader
from dlrm_mtl.serve.rows import Where, columns_of

_WHERE = Where("golden rows")
DIGITS = (4, 6, 9, 12, 15)
"""Numbers of significant digits at which an inverse is tried: raw numbers are mostly short decimals."""
NEIGHBOURS = 4
"""Number of doubles on either side of an inverse that are tried."""


def raw_rows_of(
    raw: RawRows,
    features: Sequence[FeatureSpec],
    vocabularies: Mapping[str, Values],
    lookups: Mapping[str, ValueIds],
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Raw rows that read as ``rows`` of the data set.

    Args:
        raw: description of raw rows.
        features: features that the model reads.
        vocabularies: values and ids by owner.
        lookups: the same, to be read.
        rows: rows of the data set, as stored.

    Returns:
        Raw rows, and the names of the features that they lack because no raw values lead back to the stored ones: a hash
        cannot be inverted.
    """
    reader, stored = RawReader(raw, lookups), columns_of(rows, features, _WHERE)[0]
    described = {feature.name: feature for feature in raw.features}
    columns: dict[str, list[Any]] = {}
    lacking = []
    for spec in features:
        feature = described[spec.name]
        wanted = stored[spec.name].to_pylist()
        if feature.column in columns:
            candidates: list[Any] | None = columns[feature.column]
        else:
            texts = _texts(feature, wanted, vocabularies, lookups, raw) if feature.values == "vocabulary" else {}
            candidates = _candidates(feature, wanted, texts)
        if candidates is None or not _reads(reader, spec, feature.column, candidates, stored[spec.name]):
            lacking.append(spec.name)
        else:
            columns[feature.column] = candidates
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], lacking


def check_raw_rows(
    reader: RawReader,
    features: Sequence[FeatureSpec],
    raw_rows: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    place: str,
) -> None:
    """Check that golden raw rows read as the rows of the data set.

    Raises:
        UserError: the first feature whose values differ.
    """
    read = [spec for spec in reader.fields(features) if all(spec.source in row for row in raw_rows[:1])]
    policies = {spec.name: "unknown" for spec in read}
    found = reader.read(raw_rows, read, _WHERE, policies, policies)[0]
    stored = columns_of(rows, features, _WHERE)[0]
    for name, column in found.items():
        if not _same(column, stored[name]):
            raise UserError(
                f"{place}: on the golden rows raw values of the feature {name!r} are read otherwise than in training, so "
                "this bundle is not served; export it again with this version of dlrm-mtl."
            )


def _texts(
    feature: RawFeature,
    stored: Sequence[Any],
    vocabularies: Mapping[str, Values],
    lookups: Mapping[str, ValueIds],
    raw: RawRows,
) -> dict[int, str]:
    """A value of every id that is ``stored``; for id 0, and ids without a value, one that the vocabulary lacks."""
    values = vocabularies[str(feature.owner)]
    wanted = {each for value in stored for each in (value if isinstance(value, list) else [value]) if each is not None}
    places = np.flatnonzero(np.isin(values.ids, sorted(wanted)))
    known = dict(zip(values.ids[places].tolist(), values.values.take(pa.array(places)).to_pylist(), strict=True))
    nothing = "unknown"
    while nothing in raw.nulls or lookups[str(feature.owner)].find(pa.array([nothing]))[0] != UNKNOWN:
        nothing += "_"
    return {each: known.get(each, nothing) for each in wanted}


def _reads(reader: RawReader, spec: FeatureSpec, column: str, candidates: list[Any], stored: pa.Array) -> bool:
    policies = {spec.name: "unknown"}
    rows = [{column: value} for value in candidates]
    try:
        found = reader.read(rows, reader.fields([spec]), _WHERE, policies, policies)[0][spec.name]
    except UserError:
        return False
    return _same(found, stored)


def _same(one: pa.Array, other: pa.Array) -> bool:
    """True if two columns hold the same ids, or lists of them, or numbers."""
    return [value or None if isinstance(value, list) else value for value in one.to_pylist()] == [
        value or None if isinstance(value, list) else value for value in other.to_pylist()
    ]


def _candidates(feature: RawFeature, stored: Sequence[Any], texts: Mapping[int, str]) -> list[Any] | None:
    """Raw values that may read as the ``stored`` ones; None for hashes."""
    if feature.values == "stored":
        return list(stored)
    if feature.values == "number":
        return [None if number is None else _before(feature, number) for number in stored]
    if feature.values == "hash":
        return None
    listed = any(isinstance(value, list) for value in stored)
    if not listed:
        absent = (None, 0) if feature.null == "zero" else (None,)
        return [None if value in absent else texts[value] for value in stored]
    lists = [None if value is None else [texts[each] for each in value if each is not None] for value in stored]
    if feature.separator is None:
        return lists
    return [None if value is None else _joined(value, feature) for value in lists]


def _joined(entries: Sequence[str], feature: RawFeature) -> str:
    separator = str(feature.separator)
    if not feature.brackets:
        return separator.join(entries)
    return "[" + separator.join(f"'{entry}'" for entry in entries) + "]"


def _before(feature: RawFeature, number: float) -> float:
    """A number whose transform is ``number``, if one is found nearby."""
    if feature.transform is None:
        return number
    inverse = math.copysign(math.expm1(min(abs(number), 700.0)), number)
    for candidate in _near(inverse):
        if _after(feature, candidate) == number:
            return candidate
    return inverse


def _near(number: float) -> list[float]:
    short = [float(f"{number:.{digits}g}") for digits in DIGITS]
    around = [number]
    low = high = number
    for _ in range(NEIGHBOURS):
        low, high = float(np.nextafter(low, -np.inf)), float(np.nextafter(high, np.inf))
        around += [low, high]
    return [*short, *around]


def _after(feature: RawFeature, number: float) -> float:
    if feature.transform == "log1p":
        return math.log(1 + number) if number >= 0 else math.nan
    return math.copysign(math.log(1 + abs(number)), number) if number else 0.0
