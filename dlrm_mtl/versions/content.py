"""Tensors of published versions: whole ones of a base, changed rows of a delta. Every byte that is read is checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrm_mtl.checkpoint import state
from dlrm_mtl.checkpoint.format import DTYPES, INDEX_FILE, Index, parse_index, sha256
from dlrm_mtl.checkpoint.reader import Reader, targets
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.run_store import RunStore, StorageError
from dlrm_mtl.versions.format import GOLDEN_SCORES, REMEDY, StoredVersion

DENSE = "dense."


@dataclass(frozen=True)
class Rows:
    """Changed rows of a table, or changed ids of the rows of a vocabulary."""

    rows: Tensor
    """[K] int64, ascending."""
    values: Tensor
    """[K, dim] weights, or [K] int64 ids."""


@dataclass(frozen=True)
class Delta:
    """The changes of one version to the one before."""

    tables: Mapping[str, Rows]
    """Rows by name of the table."""
    ids: Mapping[str, Rows]
    """Ids by name of the vocabulary; 0 for a row that became free."""
    dense: Mapping[str, Tensor]
    """All weights outside the tables."""
    scores: Tensor
    """[N, T] float32: the trained model's predictions for the golden rows."""


class VersionReader:
    """Reader of the tensors of one version.

    Args:
        store: files of the versions.
        stored: the version.

    Raises:
        UserError: the index is missing, or was changed.
    """

    def __init__(self, store: RunStore, stored: StoredVersion) -> None:
        self._store = store
        self.stored = stored
        place = f"{store.place}/{stored.name}/{INDEX_FILE}"
        with _damage():
            content = store.read(f"{stored.name}/{INDEX_FILE}")
            if content is None:
                raise UserError(f"{place}: is missing; {REMEDY}.")
            if sha256(content) != stored.version.index:
                raise UserError(f"{place}: is not that of this version; {REMEDY}.")
            self.index: Index = parse_index(content, place)
        self._reader = Reader(store, stored.name, self.index)

    def check_sizes(self) -> None:
        """Check that every file is there, and as long as it should be; raises :class:`UserError`."""
        there = self._store.files(self.stored.name)
        for name, file in self.index.files.items():
            found = there.get(f"{self.stored.name}/{name}")
            if found != file.size:
                what = "is missing" if found is None else f"has {found:,} bytes instead of {file.size:,}"
                raise UserError(f"{self._store.place}/{self.stored.name}/{name}: {what}; {REMEDY}.")

    def new(self, name: str) -> Tensor:
        """A tensor of the type and shape of the stored tensor ``name``, to be filled."""
        stored = self.index.tensors[name]
        return torch.empty(stored.shape, dtype=DTYPES[stored.dtype])

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill ``tensors`` with the stored ones of their names; raises :class:`UserError` if a byte was changed."""
        with _damage():
            self._reader.fill(targets(dict(tensors)))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The stored tensors ``names``."""
        tensors = {name: self.new(name) for name in names}
        self.fill(tensors)
        return tensors

    def dense(self) -> dict[str, Tensor]:
        """All weights outside the tables, by name in its order."""
        found = self.read(sorted(name for name in self.index.tensors if name.startswith(DENSE)))
        return {name.removeprefix(DENSE): tensor for name, tensor in found.items()}


def read_delta(store: RunStore, stored: StoredVersion) -> Delta:
    """Read and check all of a delta.

    Raises:
        UserError: a file is missing, or was changed.
    """
    reader = VersionReader(store, stored)
    reader.check_sizes()
    changes = reader.read(name for name in reader.index.tensors if ":" in name)
    return Delta(
        tables=_joined(changes, "rows", "values", reader),
        ids=_joined(changes, "id_rows", "ids", reader),
        dense=reader.dense(),
        scores=reader.read([GOLDEN_SCORES])[GOLDEN_SCORES],
    )


def _joined(changes: Mapping[str, Tensor], rows_kind: str, values_kind: str, reader: VersionReader) -> dict[str, Rows]:
    """Changes by table, from the parts of all processes."""
    parts: dict[str, list[tuple[int, Tensor, Tensor]]] = defaultdict(list)
    for name, rows in changes.items():
        kind, *place, table = name.split(":", 3 if rows_kind == "rows" else 2)
        if kind == rows_kind:
            column = int(place[0]) if rows_kind == "rows" else 0
            parts[table].append((column, rows, changes[f"{values_kind}:{name.partition(':')[2]}"]))
    joined = {}
    for table, found in parts.items():
        rows = torch.cat([each for _, each, _ in found]).unique()
        width = max(column + (values.shape[1] if values.dim() == 2 else 1) for column, _, values in found)
        whole = found[0][2].new_zeros(len(rows), width)
        cells = 0
        for column, own, values in found:
            values = values.view(len(own), -1)
            whole[torch.searchsorted(rows, own), column : column + values.shape[1]] = values
            cells += values.numel()
        if cells != whole.numel():
            raise UserError(f"{reader.stored.name}: does not hold all columns of the rows of {table}; {REMEDY}.")
        joined[table] = Rows(rows, whole if rows_kind == "rows" else whole.flatten())
    return joined


@contextmanager
def _damage() -> Iterator[None]:
    """Say of a damaged file that it is part of a version, not of a checkpoint."""
    try:
        yield
    except StorageError:
        raise
    except UserError as error:
        raise UserError(str(error).replace(state.REMEDY, REMEDY)) from None
