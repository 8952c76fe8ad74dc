"""Values of features as the model gets them, gathered from rows of a log and of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dlrm_mtl.data.file_checks import is_list


@dataclass(frozen=True)
class FeatureValues:
    """Values of one feature in N rows: ids, or numbers, of which a row has one or none."""

    values: NDArray[np.float64] | NDArray[np.int64]
    """Ids or numbers of all rows, row by row."""
    lengths: NDArray[np.int64]
    """[N] number of values of each row; 0 for null."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def empty(self) -> float:
        """Fraction of the rows without a value."""
        return float((self.lengths == 0).mean()) if self.rows else 0.0

    def unknown(self, size: int | None) -> float:
        """Fraction of the ids that are 0 or outside the vocabulary of ``size``; None: any id is inside."""
        odd = self.values == 0
        if size is not None:
            odd |= (self.values < 0) | (self.values >= size)
        return float(odd.mean()) if len(self.values) else 0.0

    def take(self, rows: NDArray[np.int64]) -> FeatureValues:
        """The rows with these numbers."""
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        places = np.repeat(starts[rows] - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
        return FeatureValues(self.values[places], lengths)


def values_of(column: pa.Array) -> FeatureValues:
    """Values of a column of the prepared data set; nulls, and null entries of lists, are none."""
    if is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = column.flatten()
        if flat.null_count:
            valid = flat.is_valid().to_numpy(zero_copy_only=False)
            counted = np.concatenate([[0], np.cumsum(valid, dtype=np.int64)])
            ends = np.cumsum(lengths)
            lengths, flat = counted[ends] - counted[ends - lengths], flat.drop_null()
    else:
        lengths, flat = column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64), column.drop_null()
    if pa.types.is_decimal(flat.type) or pa.types.is_boolean(flat.type):
        flat = flat.cast(pa.uint8() if pa.types.is_boolean(flat.type) else pa.float64())
    values = flat.to_numpy(zero_copy_only=False)
    return FeatureValues(values.astype(np.int64 if values.dtype.kind in "iu" else np.float64), lengths)


def joined(parts: Sequence[FeatureValues]) -> FeatureValues:
    """Rows of all parts."""
    if not parts:
        return FeatureValues(np.empty(0), np.empty(0, np.int64))
    return FeatureValues(
        np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts])
    )


def hashable(value: Any) -> Any:
    """The value as part of a key."""
    return tuple(value) if isinstance(value, list) else value
