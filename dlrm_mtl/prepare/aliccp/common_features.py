"""Ali-CCP's common features, those of users, as ids on disk: many impressions share them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from dlrm_mtl.prepare.common.duck import stream
from dlrm_mtl.prepare.common.vocabularies import Vocabularies


class CommonFeatures:
    """Features of users as lists of ids in memory-mapped files: [rows + 1] offsets and ids."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        part: str,
        names: list[str],
        vocabularies: Vocabularies,
        place: Path,
    ) -> None:
        place.mkdir()
        self.missing = 0
        """Number of impressions so far whose index has no common features."""
        indices: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        lengths: dict[str, list[np.ndarray]] = {name: [np.zeros(1, dtype=np.int64)] for name in names}
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(place / name, "wb")) for name in names}
            for batch in stream(connection, f"SELECT * FROM common_{part} ORDER BY number"):
                indices.append(batch.column("number").to_numpy(False))
                for name in names:
                    ids = vocabularies.encode(name, batch.column(name))
                    files[name].write(ids.flatten().to_numpy(False).tobytes())
                    lengths[name].append(np.diff(ids.offsets.to_numpy(False)).astype(np.int64))
        self._indices = np.concatenate(indices)
        self._offsets = {name: np.cumsum(np.concatenate(parts)) for name, parts in lengths.items()}
        self._ids = {
            name: np.memmap(place / name, dtype=np.int32, mode="r")
            if self._offsets[name][-1]
            else np.zeros(0, dtype=np.int32)
            for name in names
        }

    def find(self, indices: np.ndarray) -> np.ndarray:
        """Row of each index, [n] int64; -1 for an index without common features."""
        if len(self._indices) == 0:
            rows = np.full(len(indices), -1)
        else:
            places = np.minimum(np.searchsorted(self._indices, indices), len(self._indices) - 1)
            rows = np.where(self._indices[places] == indices, places, -1)
        self.missing += int((rows < 0).sum())
        return rows

    def take(self, name: str, rows: np.ndarray) -> pa.ListArray:
        """Lists of the feature ``name`` for ``rows`` from :meth:`find`."""
        known = np.maximum(rows, 0)
        first = self._offsets[name][known]
        lengths = np.where(
            rows < 0, 0, self._offsets[name][np.minimum(known + 1, len(self._offsets[name]) - 1)] - first
        )
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(first - offsets[:-1], lengths) + np.arange(offsets[-1])
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(self._ids[name][places]))
