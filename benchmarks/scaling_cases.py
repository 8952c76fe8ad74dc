"""Tables, batches and configurations of the scaling benchmark: none of them needs files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.torchrec.sharders import SHARDING_TYPES

TYPES = tuple(SHARDING_TYPES)


@dataclass(frozen=True)
class Shape:
    """Tables of one shape, and what a row of a batch looks up in each of them."""

    tables: int
    rows: int
    dim: int
    ids: int = 1
    """Ids of each table in a row of a batch."""
    zipf: float = 0.0
    """Exponent of the popularity of rows, the k-th row in proportion to k^-zipf; 0 for equal ones."""


SHAPES = {
    "many small": Shape(tables=48, rows=10_000, dim=16),
    "few huge": Shape(tables=2, rows=2_000_000, dim=64, ids=4),
    "skewed": Shape(tables=8, rows=200_000, dim=32, ids=8, zipf=1.2),
    "wide": Shape(tables=8, rows=50_000, dim=256),
}


def configure(shape: Shape, rows: int, world: int, sharding: str, per_host: int) -> tuple[RunConfig, DatasetSpec]:
    """A run that is never started, and its data set.

    Args:
        shape: the tables.
        rows: rows of a global batch.
        world: number of processes.
        sharding: sharding type of all tables.
        per_host: processes of a host.
    """
    spec = DatasetSpec.model_validate(
        {
            "name": "random",
            "splits": {"train": {"folder": "train"}},
            "features": [
                {"name": f"table_{number}", "kind": "sparse", "vocabulary_size": shape.rows}
                for number in range(shape.tables)
            ],
            "labels": [{"name": "click"}, {"name": "buy"}],
        }
    )
    config = RunConfig.model_validate(
        {
            "name": "scaling",
            "data": {"path": "none", "batch_size": rows, "evaluation_batch_size": rows, "lanes": world},
            "tasks": [{"name": "click"}, {"name": "buy"}],
            "model": {
                "embeddings": {"dim": shape.dim, "pooling": "sum"},
                "interaction": {"name": "concat"},
                "multitask": {"name": "shared_bottom", "layers": [64]},
                "tower": {"layers": [16]},
            },
            "sharding": {"default": sharding, "processes_per_host": per_host},
            "optimizer": {"sparse": {"name": "clippy_rowwise_adagrad"}},
        }
    )
    return config, spec


def draw_batch(shape: Shape, rows: int, seed: int = 0) -> Batch:
    """A global batch of random rows; the same for the same arguments, whoever draws it."""
    random = np.random.default_rng(seed)
    count = shape.tables * rows * shape.ids
    if shape.zipf:
        sums = np.cumsum(np.arange(1, shape.rows + 1) ** -shape.zipf)
        ids = np.searchsorted(sums, random.random(count) * sums[-1]).clip(max=shape.rows - 1)
    else:
        ids = random.integers(0, shape.rows, count)
    sparse = KeyedJaggedTensor(
        keys=[f"table_{number}" for number in range(shape.tables)],
        values=torch.from_numpy(ids.astype(np.int64)),
        lengths=torch.full((shape.tables * rows,), shape.ids, dtype=torch.int32),
        stride=rows,
    )
    labels = torch.from_numpy(random.integers(0, 2, (rows, 2)).astype(np.float32))
    return Batch(sparse, torch.empty(rows, 0), labels, torch.ones(rows, 2))
