"""Pretrained vectors as the first weights of tables."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.checkpoint.reader import Target, targets
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import first_process_only, on_every_process
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.vectors import VectorFiles
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE, Values, read_values
from dlrm_mtl.embeddings.config import PretrainedVectors
from dlrm_mtl.training.sharded_model import ShardedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """How far the vectors of a file go."""

    path: str
    train: str
    ids: int
    """Number of ids of the table, 0 included."""
    with_vector: int
    """Number of ids that got a vector."""
    unused: int
    """Number of vectors of no id."""


@torch.no_grad()
def load_pretrained(model: ShardedModel, dataset: Dataset) -> dict[str, Coverage]:
    """Fill the rows of tables with their pretrained vectors, and say how many; to be called on every process.

    Every process fills its own shards. Ids without a vector keep their initial weights.

    Raises:
        UserError: a file cannot be used, or its vectors do not fit the table.
    """
    found = {}
    for table, weight in model.table_weights().items():
        options = model.table_set.pretrained.get(table)
        if options is None:
            continue
        try:
            found[table] = _load(model, dataset, table, weight, options)
        except UserError as error:
            raise UserError(f"model.embeddings.tables.{table}.pretrained: {error}") from None
        _say(table, found[table])
    return found


def _load(model: ShardedModel, dataset: Dataset, table: str, weight: Tensor, options: PretrainedVectors) -> Coverage:
    size, width = int(weight.size(0)), int(weight.size(1))
    owner = _owner(model, dataset, table)
    if owner in model.ids.vocabularies:
        raise UserError("the ids of this table are unbounded and have no rows before training; remove the key.")
    opened: list[VectorFiles] = []
    on_every_process(lambda: opened.append(_open(options, width)))
    files = opened[0]
    numbered: list[NDArray[np.int64]] = []
    first_process_only(lambda: numbered.append(files.ids(_values(dataset, owner, files), size)))
    ids = torch.empty(files.rows, dtype=torch.int64)
    if numbered:
        ids.copy_(torch.from_numpy(numbered[0]))
    dist.broadcast(ids, 0)
    on_every_process(lambda: _fill(targets({table: weight}), files, ids.numpy()))
    known = int((ids >= 0).sum())
    return Coverage(options.path, options.train, size, known, files.rows - known)


def _open(options: PretrainedVectors, width: int) -> VectorFiles:
    return VectorFiles(options.path, options.id, options.value, options.vector, width)


def _owner(model: ShardedModel, dataset: Dataset, table: str) -> str:
    features = next(each.feature_names for each in model.tables if each.name == table)
    known = {feature.name for feature in dataset.spec.features}
    return dataset.spec.vocabulary_owner(next(name for name in features if name in known))


def _values(dataset: Dataset, owner: str, files: VectorFiles) -> Values | None:
    if not files.by_value:
        return None
    path = f"{dataset.path}/{VOCABULARIES_FILE}"
    values = read_values(dataset.filesystem, path, owner)
    if values is None:
        raise UserError(
            f"{path}: has no values of {owner!r}, by which {files.path} names its vectors; name a column of ids."
        )
    return values


def _fill(shards: list[Target], files: VectorFiles, ids: NDArray[np.int64]) -> None:
    own = np.zeros(len(ids), dtype=bool)
    for shard in shards:
        own |= (ids >= shard.offset[0]) & (ids < shard.offset[0] + shard.tensor.shape[0])
    for rows, vectors in files.vectors(own):
        for shard in shards:
            (row, column), (count, width) = shard.offset, shard.tensor.shape
            here = np.flatnonzero((ids[rows] >= row) & (ids[rows] < row + count))
            values = torch.from_numpy(vectors[here, column : column + width]).to(shard.tensor)
            shard.tensor.detach()[torch.from_numpy(ids[rows][here] - row).to(shard.tensor.device)] = values


def _say(table: str, coverage: Coverage) -> None:
    if dist.get_rank() == 0:
        logger.info(
            "%s: %s of %s ids begin with a vector of %s (%.1f %%), which is %s; %s vectors belong to no id",
            table,
            f"{coverage.with_vector:,}",
            f"{coverage.ids:,}",
            coverage.path,
            100 * coverage.with_vector / coverage.ids,
            {"free": "trained like others", "slow": "trained slowly", "frozen": "frozen"}[coverage.train],
            f"{coverage.unused:,}",
        )
