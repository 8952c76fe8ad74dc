"""A small data set's description and batches for it, and models whose tables are ordinary PyTorch modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchrec import KeyedJaggedTensor

from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.models.base import ModelInputs, RankingModel
from dlrm_mtl.tasks.config import TaskConfig

USERS, ITEMS = 11, 7
KEYS = ["user", "item", "history"]


def inputs(dense: int = 2, tasks: list[dict[str, Any]] | None = None) -> ModelInputs:
    """Features user, item and history (items, too), and ``dense`` numbers."""
    numbers = [
        {"name": f"x{n}", "kind": "dense", "statistics": {"mean": n, "std": n + 0.5, "min": -9, "max": 9}}
        for n in range(dense)
    ]
    content = {
        "name": "small",
        "splits": {"train": {"folder": "train"}},
        "features": [
            {"name": "user", "kind": "sparse", "vocabulary_size": USERS},
            {"name": "item", "kind": "sparse", "vocabulary_size": ITEMS},
            {"name": "history", "kind": "sequence", "vocabulary": "item"},
            *numbers,
        ],
        "labels": [{"name": name, "mean": 0.25} for name in ("click", "buy")],
    }
    spec = DatasetSpec.model_validate(content)
    dense_features = [spec.feature(f"x{n}") for n in range(dense)]
    configs = [TaskConfig.model_validate(task) for task in tasks or [{"name": "click"}, {"name": "buy"}]]
    return ModelInputs(spec, KEYS, dense_features, configs)


def batch(rows: int, dense: int = 2, tasks: int = 2, seed: int = 0) -> Batch:
    """Random rows; labels of 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(0, 5, (rows,), generator=generator)
    lengths = torch.cat([torch.ones(2 * rows, dtype=torch.int32), history.int()])
    values = [
        torch.randint(0, USERS, (rows,), generator=generator),
        torch.randint(0, ITEMS, (rows,), generator=generator),
        torch.randint(0, ITEMS, (int(history.sum()),), generator=generator),
    ]
    return Batch(
        sparse=KeyedJaggedTensor(keys=KEYS, values=torch.cat(values), lengths=lengths, stride=rows),
        dense=torch.randn(rows, dense, generator=generator),
        labels=torch.randint(0, 2, (rows, tasks), generator=generator).float(),
        weights=torch.ones(rows, tasks),
    )


def on_cpu(model: RankingModel, std: float = 0.3) -> RankingModel:
    """Replace the tables on the meta device by real ones."""
    model.lookup.materialise()
    for parameter in model.lookup.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def bags(batch: Batch, key: str) -> list[list[int]]:
    """The ids of every row."""
    jagged = batch.sparse[key]
    return [ids.tolist() for ids in jagged.values().split(jagged.lengths().tolist())]


def table(model: RankingModel, name: str) -> torch.Tensor:
    """The weights [rows, dim] of a table."""
    (weight,) = [value for key, value in model.lookup.state_dict().items() if key.split(".")[-2] == name]
    return weight
