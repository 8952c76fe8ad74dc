"""Vectors of ids, or of raw values, in Parquet files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.dataset import DataFile, open_files
from dlrm_mtl.data.vocabularies import Values
from dlrm_mtl.storage.filesystems import locate


class VectorFiles:
    """Parquet files with one vector in each row; footers are read.

    Args:
        path: file, or folder of files; path or URI.
        id: column of ids; None for `id`, if there is such a column and ``value`` is None.
        value: column of raw values, in place of ids.
        vector: column of the vectors.
        width: numbers of a vector.

    Raises:
        UserError: a file cannot be read, or lacks a column.
    """

    def __init__(self, path: str, id: str | None, value: str | None, vector: str, width: int) -> None:
        self.path, self.vector, self.width = path, vector, width
        self.files = open_files(*locate(path))
        names = self.files[0].schema.names
        self.by_value = value is not None or (id is None and "id" not in names)
        self.key = value or id or ("value" if self.by_value else "id")
        for file in self.files:
            self._check(file)

    def _check(self, file: DataFile) -> None:
        for name in (self.key, self.vector):
            if name not in file.schema.names:
                raise UserError(f"{file.path}: there is no column {name!r}; {suggest(name, file.schema.names)}.")
        key, vector = file.schema.field(self.key).type, file.schema.field(self.vector).type
        if not self.by_value and not types.is_integer(key):
            raise UserError(
                f"{file.path}: column {self.key!r} holds {key} where ids are integers; name a column of raw values with value."
            )
        lists = types.is_list(vector) or types.is_large_list(vector) or types.is_fixed_size_list(vector)
        if not lists or not types.is_floating(vector.value_type):
            raise UserError(f"{file.path}: column {self.vector!r} holds {vector} where lists of floats are expected.")

    @property
    def rows(self) -> int:
        """Number of rows of all files."""
        return sum(file.rows for file in self.files)

    def ids(self, vocabulary: Values | None, size: int) -> NDArray[np.int64]:
        """[rows] id of each row, -1 for a value or an id that the table does not know.

        Args:
            vocabulary: values of the ids; needed if the rows have values.
            size: number of ids.

        Raises:
            UserError: a file cannot be read, a key is null, or two rows have one id.
        """
        parts = [np.empty(0, dtype=np.int64)]
        for file in self.files:
            opened = file.open()
            for group in range(file.metadata.num_row_groups):
                keys = file.read_group(opened, group, [self.key])[self.key].combine_chunks()
                if keys.null_count:
                    raise UserError(
                        f"{file.path}: row group {group}: column {self.key!r} holds null; remove these rows."
                    )
                if vocabulary is not None:
                    parts.append(vocabulary.ids_of(keys))
                else:
                    ids = keys.to_numpy().astype(np.int64)
                    parts.append(np.where((ids >= 0) & (ids < size), ids, -1))
        ids = np.concatenate(parts)
        known, counts = np.unique(ids[ids >= 0], return_counts=True)
        if (counts > 1).any():
            raise UserError(f"{self.path}: the id {known[counts > 1][0]} has more than one vector; keep one of them.")
        return ids

    def vectors(self, wanted: NDArray[np.bool_]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Vectors [n, width] of one row group after the other, and which rows they are; without those of no wanted row.

        Args:
            wanted: [rows].

        Raises:
            UserError: a file cannot be read, or a vector is null, of another width, or not finite.
        """
        first = 0
        for file in self.files:
            opened = file.open()
            for group in range(file.metadata.num_row_groups):
                rows = slice(first, first + file.metadata.row_group(group).num_rows)
                first = rows.stop
                if wanted[rows].any():
                    column = file.read_group(opened, group, [self.vector])[self.vector].combine_chunks()
                    yield rows, self._numbers(column, f"{file.path}: row group {group}")

    def _numbers(self, column: pa.Array, place: str) -> NDArray[np.float32]:
        if column.null_count:
            raise UserError(f"{place}: column {self.vector!r} holds null; remove these rows.")
        widths = pc.list_value_length(column).to_numpy()
        if (widths != self.width).any():
            wrong = int(widths[widths != self.width][0])
            raise UserError(
                f"{place}: a vector has {wrong} numbers and the table has {self.width} columns; set its dim to {wrong}, a "
                "multiple of 4, or write vectors of that many numbers."
            )
        numbers = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(-1, self.width)
        if not np.isfinite(numbers).all():
            raise UserError(f"{place}: column {self.vector!r} holds a number that is not finite; correct it.")
        return numbers
