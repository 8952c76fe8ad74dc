"""Tables of a bundle or of a run's checkpoint, read a range of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pyarrow import fs
from torch import Tensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE, Values, read_values
from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.models.base import ModelInputs
from dlrm_mtl.models.registry import build_ranking_model
from dlrm_mtl.serve.bundle import BUNDLE_FILE, check_bundle, read_model
from dlrm_mtl.serve.load import served_input
from dlrm_mtl.serve.tables import ServedTable
from dlrm_mtl.storage.filesystems import locate


@dataclass(frozen=True)
class SourceTable:
    """A table."""

    name: str
    rows: int
    dim: int
    """Number of columns, without padding."""
    features: list[str]
    """Features that are looked up in it."""
    vocabulary: str
    """Feature that owns the vocabulary."""
    read: Callable[[int, int], Tensor]
    """Function from a first row and an end to vectors [n, dim] float32."""
    ids: Callable[[int, int], Tensor] | None
    """Function from a first row and an end to unbounded ids [n] int64, 0 for a free row; None if the row is the id."""


@dataclass(frozen=True)
class TableSource:
    """All tables of a bundle or a run."""

    name: str
    """Name of the run."""
    step: int
    tables: list[SourceTable]
    data: str | None
    """Folder of the data set with the vocabularies; None if it is not known, or not the run's any more."""

    def values(self, table: SourceTable) -> Values | None:
        """Values behind the ids of a table; None if they are not known.

        Raises:
            UserError: an id is not a row of the table, so that this is not its vocabulary.
        """
        if self.data is None or table.ids is not None:
            return None
        filesystem, folder = locate(self.data)
        found = read_values(filesystem, f"{folder}/{VOCABULARIES_FILE}", table.vocabulary)
        if found is not None and not 0 <= found.ids.min() <= found.ids.max() < table.rows:
            raise UserError(
                f"{found.place}: has ids that are no rows of the table {table.name}, which has {table.rows:,}; name the data "
                "set of this model with --data."
            )
        return found


@contextmanager
def table_source(
    place: str | Path, checkpoint: str | None = None, data: str | None = None, plugins: Sequence[str] = ()
) -> Iterator[TableSource]:
    """The tables of the bundle or the run at ``place``.

    Args:
        place: folder of a bundle, or of a run (path or URI).
        checkpoint: ``best``, ``latest`` or ``step_N`` of a run; default: the best one, or the latest if no best one is known.
        data: folder of the data set with the vocabularies, path or URI; default: a run's own, if it is unchanged.
        plugins: modules that register parts of a bundle's model; they are imported, which runs them.

    Raises:
        UserError: there is neither, or it cannot be used; the data set has no vocabularies.
    """
    if data is not None and not has_vocabularies(data):
        raise UserError(f"--data {data}: there is no {VOCABULARIES_FILE} in this folder; name the prepared data set.")
    if "://" not in str(place) and (Path(place) / BUNDLE_FILE).is_file():
        if checkpoint is not None:
            raise UserError(f"--checkpoint {checkpoint}: a bundle has one step; leave it out, or name a run.")
        yield _of_bundle(Path(place), data, plugins)
        return
    from dlrm_mtl.serve.table_files.of_run import run_tables  # which needs TorchRec

    with run_tables(str(place), checkpoint, data) as source:
        yield source


def _of_bundle(folder: Path, data: str | None, plugins: Sequence[str]) -> TableSource:
    check_bundle(folder)
    served = read_model(folder, list(plugins))
    given = served_input(folder, served)
    inputs = ModelInputs(given.spec, given.selection.keys, given.selection.dense, served.tasks)
    tables = build_ranking_model(served.model, inputs, lambda _: (None, None)).lookup.table_set
    ids = {name: given.changes.of_ids(name, given.stored.ids(name)) for name in served.data.unbounded}
    found = []
    for name, rows, dim, features, vocabulary in described(tables, given.spec):
        stored = dim + tables.padding.get(name, 0)
        table = given.changes.of_table(name, given.stored.table(name, rows, stored))
        own = partial(_slice, ids[vocabulary]) if vocabulary in ids else None
        found.append(SourceTable(name, rows, dim, features, vocabulary, partial(_of_table, table, dim), own))
    return TableSource(served.name, served.step, found, data)


def described(tables: TableSet, spec: DatasetSpec) -> Iterator[tuple[str, int, int, list[str], str]]:
    """Name, rows, columns without padding, features, and vocabulary of each table."""
    known = {feature.name for feature in spec.features}
    for table in tables.configs:
        features = [name for name in table.feature_names if name in known]  # others are drawn in training
        dim = table.embedding_dim - tables.padding.get(table.name, 0)
        yield table.name, table.num_embeddings, dim, features, spec.vocabulary_owner(features[0])


def has_vocabularies(data: str) -> bool:
    """True if the data set in a folder, path or URI, has the values behind its ids."""
    filesystem, folder = locate(data)
    return bool(filesystem.get_file_info(f"{folder}/{VOCABULARIES_FILE}").type == fs.FileType.File)


def _of_table(table: ServedTable, dim: int, first: int, stop: int) -> Tensor:
    return table.vectors(torch.arange(first, stop))[:, :dim]


def _slice(ids: Tensor, first: int, stop: int) -> Tensor:
    return ids[first:stop]
