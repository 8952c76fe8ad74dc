"""A small data set with every kind of column, written as real Parquet files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SIZES = {"user": 60, "item": 200, "tags": 30}


def write_dataset(folder: Path, rows: int = 1000, seed: int = 0) -> Path:
    """Write splits train (``rows``), validation and test (a quarter each); labels depend on users, items and numbers."""
    rng = np.random.default_rng(seed)
    taste = {name: rng.normal(size=size) for name, size in SIZES.items()}
    for split, count in {"train": rows, "validation": rows // 4, "test": rows // 4}.items():
        (folder / split).mkdir(parents=True)
        table = _rows(rng, count, taste)
        half = count // 2
        pq.write_table(table.slice(0, half), folder / split / "part-0.parquet", row_group_size=100)
        pq.write_table(table.slice(half), folder / split / "part-1.parquet", row_group_size=130)
    spec = {
        "name": "synthetic",
        "splits": {split: {"folder": split} for split in ("train", "validation", "test")},
        "features": [
            {"name": "user", "kind": "sparse", "vocabulary_size": SIZES["user"]},
            {"name": "item", "kind": "sparse", "vocabulary_size": SIZES["item"]},
            {"name": "tags", "kind": "sparse", "vocabulary_size": SIZES["tags"]},
            {"name": "history", "kind": "sequence", "vocabulary": "item"},
            {"name": "age", "kind": "dense", "statistics": {"mean": 40.0, "std": 10.0, "min": 0.0, "max": 80.0}},
            {"name": "price", "kind": "dense"},
        ],
        "labels": [{"name": "click"}, {"name": "buy"}],
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return folder


def _rows(rng: np.random.Generator, count: int, taste: dict[str, np.ndarray]) -> pa.Table:
    user, item = (rng.integers(0, SIZES[name], count) for name in ("user", "item"))
    tags, history = _lists(rng, count, SIZES["tags"], 3), _lists(rng, count, SIZES["item"], 8)
    age, price = rng.normal(40, 10, count), rng.normal(size=count)
    signal = taste["user"][user] + taste["item"][item] + 0.5 * price
    click = (signal + rng.logistic(size=count) > 0).astype(np.int8)
    buy = ((signal + rng.logistic(size=count) > 1) & (click == 1)).astype(np.int8)
    missing = rng.random(count) < 0.05
    return pa.table(
        {
            "user": pa.array(user, mask=missing),
            "item": pa.array(item, pa.int32()),
            "tags": pa.array(tags, pa.list_(pa.int64())),
            "history": pa.array(history, pa.list_(pa.int64())),
            "age": pa.array(age, mask=rng.random(count) < 0.05),
            "price": pa.array(price, pa.float32()),
            "click": click,
            "buy": pa.array(buy, mask=rng.random(count) < 0.05),
            "row": np.arange(count),
        }
    )


def _lists(rng: np.random.Generator, count: int, size: int, longest: int) -> list[list[int] | None]:
    lengths = rng.integers(-1, longest + 1, count)
    return [None if length < 0 else rng.integers(0, size, length).tolist() for length in lengths]


def config(dataset: Path, /, **changes: object) -> dict[str, object]:
    """A run's configuration for this data set, small enough for tests; ``changes`` replace whole top-level parts."""
    content: dict[str, object] = {
        "name": "synthetic",
        "seed": 3,
        "data": {"path": str(dataset), "batch_size": 64, "evaluation_batch_size": 64, "lanes": 4, "block_rows": 128},
        "tasks": [{"name": "click"}, {"name": "buy", "weight": 0.5}],
        "model": {
            "embeddings": {"dim": 8, "init_std": 0.1, "tables": {"tags": {"pooling": "sum"}}},
            "embedding_dropout": 0.1,
            "interaction": {"name": "dcnv2", "layers": 1},
            "multitask": {"name": "mmoe", "experts": 3, "layers": [16], "dropout": 0.1},
            "tower": {"layers": [8]},
        },
        "optimizer": {"sparse": {"name": "rowwise_adagrad", "learning_rate": 0.05}},
        "training": {"epochs": 2, "log_every": 1},
    }
    content.update(changes)
    return content
