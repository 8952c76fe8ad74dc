"""Raw rows to the columns of the prepared data set: ids and numbers by feature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.file_checks import is_list
from dlrm_mtl.data.spec import FeatureSpec
from dlrm_mtl.prepare.common.ids import hash_ids
from dlrm_mtl.serve.raw.columns import Elements, elements_of_array, elements_of_values
from dlrm_mtl.serve.raw.description import RawFeature, RawRows
from dlrm_mtl.serve.raw.entries import entries_of
from dlrm_mtl.serve.raw.lists import Entries, keep
from dlrm_mtl.serve.raw.lookup import UNKNOWN, ValueIds
from dlrm_mtl.serve.raw.numbers import numbers, transformed
from dlrm_mtl.serve.raw.texts import Refuse
from dlrm_mtl.serve.rows import Columns, Field, Rows, Where, fields_of, prepared, shown

NULL = -2
"""Id of null, which stands for 0 or for none."""
Policies = Mapping[str, str]
"""Policy by feature, see :data:`~dlrm_mtl.serve.encode.Policy`."""


class RawReader:
    """Reader of raw rows, which makes of every column what `prepare` made of it.

    Args:
        raw: description of raw rows.
        vocabularies: vocabularies by owner.
    """

    def __init__(self, raw: RawRows, vocabularies: Mapping[str, ValueIds]) -> None:
        self._raw, self._vocabularies = raw, vocabularies
        self._described = {feature.name: feature for feature in raw.features}

    def numbers(self, name: str) -> bool:
        """True if raw values of the feature ``name`` are numbered: then `prepare` gives those it does not know the id 0."""
        return self._described[name].values in ("vocabulary", "hash")

    def fields(self, features: Sequence[FeatureSpec]) -> list[FeatureSpec]:
        """Features with their raw columns."""
        return [feature.model_copy(update={"column": self._described[feature.name].column}) for feature in features]

    def read(
        self, rows: Rows, features: Sequence[FeatureSpec], where: Where, missing: Policies, unknown: Policies
    ) -> Columns:
        """Columns of the prepared data set.

        Args:
            rows: raw rows.
            features: features to read, from :meth:`fields`.
            where: origin of the rows.
            missing: policies for missing fields.
            unknown: policies for values that a vocabulary lacks.

        Raises:
            UserError: a row, or a value in it, is not allowed.
        """
        fields, count = fields_of(rows, [spec.source for spec in features], where)
        seen: dict[str, Counter[str]] = {"missing": Counter(), "unknown": Counter()}
        columns = {}
        for spec in features:
            feature, field = self._described[spec.name], fields[spec.source]
            if field.absent is not None:
                seen["missing"][feature.name] += int(field.absent.sum())
                if missing[feature.name] == "refuse":
                    raise field.missing(spec, where)
            refuse = _refusing(feature, where)
            if feature.values == "stored":
                column = prepared(field, spec, where)
            elif feature.values == "number":
                column = self._numbers(feature, _elements(field, refuse), refuse)
            else:
                column, lacking = self._ids(feature, _elements(field, refuse), unknown[feature.name], refuse)
                seen["unknown"][feature.name] += lacking
            if field.absent is not None and missing[feature.name] == "unknown" and feature.kind != "dense":
                zero: Any = [0] if is_list(column.type) else 0
                column = pc.if_else(pa.array(field.absent), pa.scalar(zero, column.type), column)
            columns[feature.name] = column
        return columns, seen, count

    def _numbers(self, feature: RawFeature, elements: Elements, refuse: Refuse) -> pa.Array:
        """[N] numbers after the transform."""
        if elements.lengths is not None:
            row = int(np.argmax(elements.lists)) if elements.lists is not None else 0
            raise refuse(row, "a list where a number is expected; correct it")

        def convert(array: pa.Array, refuse: Refuse) -> pa.Array:
            values, null = transformed(numbers(array, self._raw, refuse), feature, refuse)
            return pa.array(values, mask=null)

        return elements.gather(convert, refuse)

    def _ids(self, feature: RawFeature, elements: Elements, policy: str, refuse: Refuse) -> tuple[pa.Array, int]:
        """Ids, or lists of them, and the number of unknown values."""
        entries, single = entries_of(feature, self._raw.nulls, elements, refuse)
        ids = self._numbered(feature, entries.values)
        bad = ids == UNKNOWN
        count = int(np.count_nonzero(bad))
        if count and policy == "refuse":
            at = int(np.argmax(bad))
            row = int(np.searchsorted(np.cumsum(entries.lengths), at, side="right"))
            value = shown(entries.values[at].as_py())
            raise refuse(row, f"{value}, which its vocabulary lacks; correct it, or set a policy for unknown values")
        if count:
            ids = np.where(bad, NULL if policy == "default" else 0, ids)
        null = ids == NULL
        if feature.null == "zero" and not feature.listed:
            ids, null = np.where(null, 0, ids), np.zeros(len(ids), np.bool_)
        if single:
            return pa.array(ids, mask=null if null.any() else None), count
        entries, ids = keep(Entries(entries.values, entries.lengths), ~null), ids[~null]
        offsets = np.concatenate([[0], np.cumsum(entries.lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)), count

    def _numbered(self, feature: RawFeature, values: pa.Array) -> NDArray[np.int64]:
        """Ids of texts; :data:`~dlrm_mtl.serve.raw.lookup.UNKNOWN`, and :data:`NULL` for null."""
        owner = str(feature.owner)
        if feature.values == "hash":
            assert feature.size is not None
            ids = hash_ids(values, feature.size, feature=owner, seed=feature.seed)
        else:
            ids = self._vocabularies[owner].find(pc.fill_null(values, ""))
        return np.where(values.is_null().to_numpy(zero_copy_only=False), NULL, ids)


def _elements(field: Field, refuse: Refuse) -> Elements:
    if field.array is not None:
        return elements_of_array(field.array)
    assert field.values is not None
    return elements_of_values(field.values, refuse)


def _refusing(feature: RawFeature, where: Where) -> Refuse:
    """Maker of errors for the values of a feature."""

    def refuse(row: int, problem: str) -> UserError:
        return UserError(
            f"{where.row(row)}: {feature.column!r}, which feature {feature.name!r} reads, holds {problem}."
        )

    return refuse
