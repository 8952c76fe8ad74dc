"""The values behind the ids of a data set, from its ``vocabularies.parquet``: feature, id, value, count."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.dataset import read_again, read_footer, unreachable

VOCABULARIES_FILE = "vocabularies.parquet"
"""Name of the file in a data set's folder."""
PIECE = 16 << 20
"""Number of bytes that are read at a time for the digest."""


@dataclass(frozen=True)
class Values:
    """Values of one feature and their ids, in the order of the file."""

    place: str
    values: pa.Array
    """[N] strings."""
    ids: NDArray[np.int64]
    """[N]"""

    def ids_of(self, values: pa.Array) -> NDArray[np.int64]:
        """Ids of ``values`` of any type, by their text; -1 for unknown and null ones."""
        if not pa.types.is_string(values.type):
            values = pc.cast(values, pa.string())
        places = pc.fill_null(pc.index_in(values, value_set=self.values, skip_nulls=True), -1).to_numpy()
        return np.where(places < 0, -1, self.ids[places] if len(self.ids) else -1)


def vocabularies_digest(filesystem: fs.FileSystem, folder: str) -> str | None:
    """SHA-256 of the vocabularies of the data set in ``folder``; None if it has none.

    Raises:
        UserError: the file cannot be read.
    """
    path = f"{folder}/{VOCABULARIES_FILE}"

    def read() -> str | None:
        if filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        digest = hashlib.sha256()
        with filesystem.open_input_stream(path) as stream:
            while piece := stream.read(PIECE):
                digest.update(piece)
        return digest.hexdigest()

    return read_again(read, filesystem, path, unreachable)


def read_values(filesystem: fs.FileSystem, path: str, feature: str) -> Values | None:
    """Values of ``feature``, which owns its vocabulary, in the file ``path``; None if the file has none of it.

    Raises:
        UserError: there is no such file, it cannot be read, has other columns, or has a value twice.
    """
    if read_again(lambda: filesystem.get_file_info(path).type, filesystem, path, unreachable) != fs.FileType.File:
        raise UserError(f"{path}: there is no such file, which knows the values behind ids; check the path.")
    names = read_footer(filesystem, path).schema.names
    for name in ("feature", "id", "value"):
        if name not in names:
            raise UserError(
                f"{path}: there is no column {name!r}, as in a file of vocabularies; {suggest(name, names)}."
            )

    def read() -> pa.Table:
        with filesystem.open_input_file(path) as source:
            return pq.read_table(source, columns=["id", "value"], filters=pc.field("feature") == feature)

    table = read_again(read, filesystem, path)
    table = table.filter(pc.is_valid(table["value"]))
    if not table.num_rows:
        return None
    values = table["value"].cast(pa.string()).combine_chunks()
    counts = pc.value_counts(values)
    if len(counts) < len(values):
        twice = counts.field("values")[int(pc.index(pc.greater(counts.field("counts"), 1), True).as_py())]
        raise UserError(
            f"{path}: feature {feature!r} has the value {twice.as_py()!r} twice; prepare the data set again."
        )
    return Values(path, values, table["id"].to_numpy().astype(np.int64))


def rows_by_value(was: Values, now: Values, rows_before: int, rows: int) -> NDArray[np.int64]:
    """For each row of a table with the vocabulary ``now``, the row of the same value with ``was``; -1 for a new value.

    Row 0, which stands for unknown values, remains row 0.

    Args:
        was: the former vocabulary.
        now: the new one.
        rows_before: rows of the table with the former vocabulary.
        rows: rows of the table with the new one.

    Raises:
        UserError: an id is not a row.
    """
    for vocabulary, size in ((was, rows_before), (now, rows)):
        if vocabulary.ids.min() < 0 or vocabulary.ids.max() >= size:
            wrong = vocabulary.ids.max() if vocabulary.ids.max() >= size else vocabulary.ids.min()
            raise UserError(
                f"{vocabulary.place}: has the id {wrong}, and the table has the rows 0 to {size - 1}, so that this is not its "
                "vocabulary; name the right one."
            )
    source = np.full(rows, -1, dtype=np.int64)
    source[0] = 0
    source[now.ids] = was.ids_of(now.values)
    return source
