"""A small data set of a shop for the tests of negatives: categories, tags and prices belong to the items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.negatives.rewrite import Negatives
from dlrm_mtl.data.reader import BatchLoader
from tests.data.reading import write_rows

USERS, ITEMS = 12, 30
LABELS = ["click", "buy", "seconds"]
SPEC: dict[str, Any] = {
    "name": "shop",
    "splits": {"train": {"folder": "train"}},
    "features": [
        {"name": "row", "kind": "sparse", "vocabulary_size": 1 << 20},
        {"name": "user", "kind": "sparse", "vocabulary_size": USERS},
        {"name": "item", "kind": "sparse", "vocabulary_size": ITEMS},
        {"name": "category", "kind": "sparse", "vocabulary_size": 6},
        {"name": "tags", "kind": "sparse", "vocabulary_size": 9},
        {"name": "history", "kind": "sequence", "vocabulary": "item"},
        {"name": "price", "kind": "dense", "statistics": {"mean": 10.0, "std": 2.0, "min": 0.0, "max": 99.0}},
        {"name": "hour", "kind": "dense"},
    ],
    "labels": [{"name": "click"}, {"name": "buy"}, {"name": "seconds", "kind": "real"}],
}
ALONG = ["category", "tags", "price"]


def table(rows: int, seed: int = 0, observed_only: bool = False) -> pa.Table:
    """Rows with nulls; an item's category, tags and price change with time, so that the last row tells."""
    rng = np.random.default_rng(seed)

    def holes(share: float = 0.1) -> np.ndarray[Any, Any]:
        return rng.random(rows) < share

    item = np.minimum(rng.geometric(0.15, rows) - 1, ITEMS - 1)
    age = np.arange(rows) * 3 // max(rows, 1)
    tags = [None if rng.random() < 0.1 else [(i + a) % 9, i % 4][: 1 + i % 2] for i, a in zip(item, age, strict=True)]
    history = [rng.integers(0, ITEMS, rng.integers(0, 5)).tolist() for _ in range(rows)]
    click = np.ones(rows) if observed_only else rng.random(rows) < 0.5
    return pa.table(
        {
            "row": np.arange(1, rows + 1),
            "user": pa.array(rng.integers(0, USERS, rows).astype(np.int32), mask=holes()),
            "item": pa.array(item, pa.int64(), mask=holes(0.03)),
            "category": pa.array((item + age) % 6, pa.int16(), mask=holes()),
            "tags": pa.array(tags, pa.list_(pa.int32())),
            "history": pa.array(history, pa.list_(pa.int64())),
            "price": pa.array(item + age.astype(np.float64), mask=holes()),
            "hour": pa.array(rng.integers(1, 24, rows), pa.int32()),
            "click": pa.array(click.astype(np.int8), mask=None if observed_only else holes()),
            "buy": pa.array((rng.random(rows) < 0.3).astype(np.int8), mask=holes()),
            "seconds": pa.array(rng.exponential(size=rows), mask=holes()),
            "importance": pa.array(np.where(holes(0.2), 0.0, 1.0 + rng.integers(0, 3, rows))),
        }
    )


def write(
    folder: Path, files: Sequence[Sequence[int]], seed: int = 0, observed_only: bool = False
) -> list[dict[str, Any]]:
    """Write a data set whose file i has row groups of ``files[i]`` rows; returns its rows in order."""
    rows = table(sum(map(sum, files)), seed, observed_only)
    write_rows(folder, files, rows, SPEC)
    result: list[dict[str, Any]] = rows.to_pylist()
    return result


def data_config(folder: Path, negatives: dict[str, Any] | None = None, **options: Any) -> DataConfig:
    """A small configuration."""
    return DataConfig(
        path=str(folder),
        negatives=None if negatives is None else {"item": "item", **negatives},
        **{"batch_size": 16, "evaluation_batch_size": 16, "lanes": 4, "block_rows": 20, **options},
    )


def reader(folder: Path, negatives: dict[str, Any] | None, **options: Any) -> BatchLoader:
    """A loader of the training split; options of DataConfig and of BatchLoader mixed."""
    own = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    seed, labels = options.pop("seed", 5), options.pop("labels", LABELS)
    config, split = data_config(folder, negatives, **options), open_dataset(folder).split("train")
    drawn = None if negatives is None else Negatives.of(split, config, labels, seed)
    return BatchLoader(split, config, labels, seed=seed, negatives=drawn, **own)
