"""Rows of a data set, as the model gets them: a sample, or those with certain keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.parquet_guard import unreadable
from dlrm_mtl.data.spec import FeatureSpec
from dlrm_mtl.serve.rows import Where, columns_of
from dlrm_mtl.serve.skew.replay import Key
from dlrm_mtl.serve.skew.values import FeatureValues, hashable, joined, values_of

SAMPLE = 500_000
"""Number of rows that are read for distributions, from row groups spread over the files."""


class DataRows:
    """Rows of a split; raises :class:`UserError` if its files cannot be read."""

    def __init__(self, dataset: Dataset, split: str, features: Sequence[FeatureSpec]) -> None:
        self._files = dataset.split(split).files
        described = {feature.name: feature for feature in dataset.spec.features}
        self._features = [described[feature.name] for feature in features]

    def sample(self) -> dict[str, FeatureValues]:
        """Values of up to about :data:`SAMPLE` rows."""
        rows = sum(file.rows for file in self._files)
        every = max(1, rows // SAMPLE)
        parts: dict[str, list[FeatureValues]] = {}
        for values, _ in self._tables([], every):
            for name, each in values.items():
                parts.setdefault(name, []).append(each)
        return {name: joined(each) for name, each in parts.items()}

    def with_keys(self, keys: Sequence[str], wanted: set[Key]) -> tuple[dict[str, FeatureValues], dict[Key, int]]:
        """Values of the rows whose key is ``wanted``, and the row of every key; keys of several rows are left out."""
        parts: dict[str, list[FeatureValues]] = {}
        row_of: dict[Key, int] = {}
        several: set[Key] = set()
        count = 0
        for values, found in self._tables(keys, 1):
            chosen = [(row, key) for row, key in enumerate(found) if key in wanted]
            rows: NDArray[np.int64] = np.array([row for row, _ in chosen], np.int64)
            for number, (_, key) in enumerate(chosen):
                several.update([key] if key in row_of else [])
                row_of[key] = count + number
            count += len(rows)
            for name, each in values.items():
                parts.setdefault(name, []).append(each.take(rows))
        for key in several:
            del row_of[key]
        return {name: joined(each) for name, each in parts.items()}, row_of

    def _tables(self, keys: Sequence[str], every: int) -> Iterator[tuple[dict[str, FeatureValues], list[Key]]]:
        """Values of the features, and keys, of every row group with a number divisible by ``every``."""
        columns = list(dict.fromkeys([*(feature.source for feature in self._features), *keys]))
        number = 0
        for file in self._files:
            for column in columns:
                if column not in file.schema.names:
                    raise UserError(
                        f"{file.path}: there is no column {column!r}; {suggest(column, file.schema.names)}."
                    )
            try:
                opened = file.open()
                for group in range(opened.num_row_groups):
                    if number % every == 0:
                        table = opened.read_row_group(group, columns=columns, use_threads=False)
                        found, _, _ = columns_of(table, self._features, Where(file.path))
                        lists = [table.column(key).to_pylist() for key in keys]
                        made = [tuple(map(hashable, row)) for row in zip(*lists, strict=True)]
                        yield {name: values_of(column) for name, column in found.items()}, made
                    number += 1
            except (OSError, pa.ArrowException) as error:
                raise unreadable(file.path, error) from None
