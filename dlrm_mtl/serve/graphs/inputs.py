"""Rows as the inputs of an exported graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.data.join_rows import Joined
from dlrm_mtl.serve.bundle import check_bundle, read_model
from dlrm_mtl.serve.encode import Policies
from dlrm_mtl.serve.load import served_input
from dlrm_mtl.serve.raw.open import RowKind, open_reader
from dlrm_mtl.serve.rows import Rows, Where

DENSE = "dense"
"""Name of the input with all numbers."""

Arrays = dict[str, NDArray[Any]]
"""Inputs of a graph by name, in the graph's order."""


class GraphInputs:
    """Encoder of rows as inputs of the graph that ``dlrm-mtl export-graph`` made of a bundle; the model is not loaded.

    With B rows, a feature F with up to L ids in a row has two inputs:

    - ``F.ids`` [B, L] int64: the ids of each row, filled up with 0. Of unbounded ids these are the rows of the table.
    - ``F.lengths`` [B] int64: the number of ids of each row.

    All numbers together are the input ``dense`` [B, D] float32, standardised as in training. Features that only training knows
    are constants of the graph, and no inputs.

    Args:
        bundle: folder of the bundle that the graph was made of.
        missing: policy for fields that a row lacks, see :data:`~dlrm_mtl.serve.encode.Policy`; default: ``refuse``.
        unknown: policy for ids outside the vocabulary, as for :class:`~dlrm_mtl.serve.scorer.Scorer`.
        plugins: modules that register parts of the model; they are imported, which runs them.
        rows: rows to encode: those of the ``prepared`` data set, or ``raw`` ones.

    Raises:
        UserError: the folder holds no bundle, or no raw rows, or a byte was changed.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        missing: Policies | None = None,
        unknown: Policies | None = None,
        plugins: Sequence[str] = (),
        rows: RowKind = "prepared",
    ) -> None:
        folder = Path(bundle)
        self.version = check_bundle(folder)
        """Version of the bundle; the graph's metadata has it, too."""
        served = read_model(folder, list(plugins))
        given = served_input(folder, served)
        self._encoder = given.encoder(missing, unknown, open_reader(folder, served, rows))
        self._constants = given.selection.constants
        self._dense = [feature.name for feature in given.selection.dense]

    def __call__(self, rows: Rows, *, where: Where = Where()) -> Arrays:  # noqa: B008  (immutable)
        """Inputs for at least one row.

        Args:
            rows: a list of mappings from columns to values, a pyarrow.Table or RecordBatch, or a pandas.DataFrame.
            where: origin of the rows, for errors.

        Raises:
            UserError: a field is missing, or a value is not allowed.
            ValueError: there is no row.
        """
        encoded = self._encoder.encode(rows, where)
        if not encoded.rows:
            raise ValueError("there is no row to encode")
        (joined,) = encoded.parts(encoded.rows)
        return arrays_of(joined, self._encoder.keys, self._dense, self._constants)


def arrays_of(joined: Joined, keys: Sequence[str], dense: Sequence[str], constants: Collection[str]) -> Arrays:
    """Inputs of a graph from encoded rows.

    Args:
        joined: the rows.
        keys: names of its features with ids.
        dense: names of its D numbers.
        constants: features that are no inputs.
    """
    found: Arrays = {}
    for name, (ids, lengths) in ids_of(joined, keys).items():
        if name not in constants:
            found |= {f"{name}.ids": ids, f"{name}.lengths": lengths}
    places = [place for place, name in enumerate(dense) if name not in constants]
    if places:
        found[DENSE] = np.ascontiguousarray(joined.dense.numpy()[:, places])
    return found


def ids_of(joined: Joined, keys: Sequence[str]) -> Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Ids [B, L], filled up with 0, and their numbers [B], by feature."""
    all_lengths = joined.lengths.numpy().reshape(len(keys), joined.rows).astype(np.int64)
    found, start = {}, 0
    for name, lengths in zip(keys, all_lengths, strict=True):
        stop = start + int(lengths.sum())
        ids = np.zeros((joined.rows, max(1, int(lengths.max()))), np.int64)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = joined.values[start:stop].numpy()
        found[name] = (ids, lengths)
        start = stop
    return found
