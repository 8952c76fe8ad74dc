"""The parts of a bundle whose bytes have been checked: the encoder of rows, the model and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.chosen_columns import Selection, select
from dlrm_mtl.data.decode import any_ids
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.local_tables import local_tables
from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.embeddings.unbounded.row_map import RowSlots
from dlrm_mtl.models.base import ModelInputs, RankingModel
from dlrm_mtl.models.registry import build_ranking_model
from dlrm_mtl.serve.bundle import CHANGES_FILE, DENSE_FILE, DIGESTS_FILE, TABLES_FILE, ServedModel
from dlrm_mtl.serve.changes import TableChanges, read_changes
from dlrm_mtl.serve.encode import Policies, RowEncoder
from dlrm_mtl.serve.raw.reader import RawReader
from dlrm_mtl.serve.tables import ServedTable, StoredTables
from dlrm_mtl.serve.tensor_files import REMEDY, map_tensors


@dataclass(frozen=True)
class ServedInput:
    """The input of a bundle's model."""

    spec: DatasetSpec
    """The data set, in which vocabularies of unbounded ids have the rows of their tables."""
    selection: Selection
    """Features that the model reads."""
    stored: StoredTables
    """Tables, and ids of their rows."""
    changes: TableChanges
    """Rows that replace those of the tables."""
    row_of: Mapping[str, Callable[[Tensor], Tensor]]
    """Functions from unbounded ids to rows, by vocabulary."""
    vocabularies: Mapping[str, str]
    """Vocabulary of each feature with unbounded ids."""

    def encoder(
        self, missing: Policies | None = None, unknown: Policies | None = None, raw: RawReader | None = None
    ) -> RowEncoder:
        """Encoder of rows with these policies; of raw rows if their reader is given."""
        return RowEncoder(self.selection, self.row_of, self.vocabularies, missing, unknown, raw)


def served_input(folder: Path, served: ServedModel) -> ServedInput:
    """The input of the model in the bundle ``folder``; of the tables only the ids of rows are read."""
    data = served.data.config(str(folder))
    spec = served.dataset.with_rows({name: each.rows for name, each in data.unbounded.items()})
    stored = StoredTables(folder / TABLES_FILE, folder / DIGESTS_FILE, served.tables)
    changes = read_changes(folder / CHANGES_FILE)
    row_of = {name: _rows_of(changes.of_ids(name, stored.ids(name))) for name in data.unbounded}
    vocabularies = _vocabularies(served.dataset, [*served.data.sparse, *served.data.sequence], list(data.unbounded))
    constants = {
        name: int(row_of[vocabularies[name]](torch.from_numpy(any_ids(np.array([value]))))) if id_ else value
        for name, value in data.train_only.items()
        for id_ in [name in vocabularies and value is not None]
    }
    selection = select(spec, data.model_copy(update={"unbounded": {}, "train_only": constants}), [], served=True)
    return ServedInput(spec, selection, stored, changes, row_of, vocabularies)


def served_model(folder: Path, served: ServedModel, given: ServedInput) -> tuple[RankingModel, dict[str, ServedTable]]:
    """The model with the bundle's weights, and its tables by name.

    Raises:
        UserError: the weights do not fit the model.
    """

    def tables_of(tables: TableSet) -> tuple[nn.Module | None, nn.Module | None]:
        for table in tables.configs:
            base = given.stored.table(table.name, table.num_embeddings, table.embedding_dim)
            rows[table.name] = given.changes.of_table(table.name, base)
        return local_tables(tables, rows)

    rows: dict[str, ServedTable] = {}
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
        model = build_ranking_model(
            served.model,
            ModelInputs(given.spec, given.selection.keys, given.selection.dense, served.tasks),
            tables_of,
        ).eval()
    try:
        model.load_state_dict(map_tensors(folder / DENSE_FILE))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder / DENSE_FILE}: does not fit the model ({reason}); {REMEDY}.") from None
    return model, rows


def _rows_of(ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Function from unbounded ids to rows, given the id of each row."""
    slots = RowSlots(len(ids), "lru", 0, 1, torch.device("cpu"))  # nothing is evicted here
    slots.ids = ids
    return partial(RowSlots.find, slots)


def _vocabularies(spec: DatasetSpec, features: Sequence[str], unbounded: Sequence[str]) -> Mapping[str, str]:
    owners = {name: spec.vocabulary_owner(name) for name in features}
    return {name: owner for name, owner in owners.items() if owner in unbounded}
