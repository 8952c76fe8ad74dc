"""Tables of a run's checkpoint, of which only the rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from dlrm_mtl.checkpoint.checkpoints import Opened
from dlrm_mtl.checkpoint.reader import Target
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.vocabularies import vocabularies_digest
from dlrm_mtl.models.base import ModelInputs
from dlrm_mtl.models.registry import build_ranking_model
from dlrm_mtl.run.contract import config_in_use, in_full, saved_contract
from dlrm_mtl.run.predict import trained_run
from dlrm_mtl.serve.table_files.source import SourceTable, TableSource, described, has_vocabularies
from dlrm_mtl.storage.filesystems import locate


@contextmanager
def run_tables(place: str, checkpoint: str | None, data: str | None) -> Iterator[TableSource]:
    """The tables of a run.

    Args:
        place: folder of the run, path or URI.
        checkpoint: ``best``, ``latest`` or ``step_N``; default: the best one, or the latest if no best one is known.
        data: folder of the data set with the vocabularies; default: the run's own, if it is unchanged.

    Raises:
        UserError: there is no such run or checkpoint.
    """
    with process_group() as process, trained_run(place) as (checkpoints, config):
        if process.world_size > 1:
            raise UserError("export-tables: one process writes the files; start it without a launcher.")
        opened = checkpoints.open(checkpoints.path(checkpoint))
        yield _of_run(opened, config, place, data)


def _of_run(opened: Opened, config: RunConfig, place: str, data: str | None) -> TableSource:
    contract = saved_contract(opened.state, place)
    config = in_full(config_in_use(config, opened.state, place), contract)
    spec = open_dataset(config.data.path).spec if contract is None else contract.dataset
    selection = select(spec, config.data, [])
    sized = spec.with_rows({name: unbounded.rows for name, unbounded in config.data.unbounded.items()})
    inputs = ModelInputs(sized, selection.keys, selection.dense, config.tasks)
    tables = build_ranking_model(config.model, inputs, lambda _: (None, None)).lookup.table_set
    found = []
    for name, rows, dim, features, vocabulary in described(tables, spec):
        read = partial(_stored, opened, f"tables.{name}", dim)
        ids = partial(_stored, opened, f"ids.{vocabulary}.ids", None) if vocabulary in config.data.unbounded else None
        found.append(SourceTable(name, rows, dim, features, vocabulary, read, ids))
    known = contract.vocabularies if contract is not None else None
    own = config.data.path
    if data is None and known is not None and has_vocabularies(own) and vocabularies_digest(*locate(own)) == known:
        data = own
    return TableSource(config.name, opened.state.step, found, data)


def _stored(opened: Opened, name: str, dim: int | None, first: int, stop: int) -> Tensor:
    """Rows of a tensor of a checkpoint, whose checksums are checked: [n, dim] float32, or [n] int64 without ``dim``."""
    if dim is None:
        part, offset = torch.empty(stop - first, dtype=torch.int64), (first,)
        opened.reader.fill([Target(name, part, offset)])
        return part
    vectors = torch.empty(stop - first, opened.index.tensors[name].shape[1])
    opened.reader.fill([Target(name, vectors, (first, 0))])
    return vectors[:, :dim]
