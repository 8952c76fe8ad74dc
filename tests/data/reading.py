"""Small data sets for the tests of the reader, and what a batch must hold, computed row by row in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.reader import BatchLoader

VOCABULARY = {"row": 1 << 20, "user": 50, "tags": 20, "seen": 50}
SPEC: dict[str, Any] = {
    "name": "small",
    "splits": {"train": {"folder": "train"}},
    "features": [
        {"name": "row", "kind": "sparse", "vocabulary_size": VOCABULARY["row"]},
        {"name": "user", "kind": "sparse", "vocabulary_size": VOCABULARY["user"]},
        {"name": "tags", "kind": "sparse", "vocabulary_size": VOCABULARY["tags"]},
        {"name": "seen", "kind": "sequence", "vocabulary": "user"},
        {"name": "age", "kind": "dense", "statistics": {"mean": 30.0, "std": 4.0, "min": 0.0, "max": 99.0, "nulls": 1}},
        {"name": "count", "kind": "dense"},
    ],
    "labels": [{"name": "click"}, {"name": "buy"}, {"name": "seconds", "kind": "real"}],
}
LABELS = ["click", "buy", "seconds"]
MEAN, STD = 30.0, 4.0


def table(rows: int, seed: int = 0, first: int = 0) -> pa.Table:
    """Columns of many types with nulls; the column row numbers the rows from ``first``."""
    rng = np.random.default_rng(seed)

    def lists(longest: int, size: int) -> list[list[int | None] | None]:
        return [
            None if length < 0 else [None if rng.random() < 0.1 else int(rng.integers(0, size)) for _ in range(length)]
            for length in rng.integers(-1, longest + 1, rows)
        ]

    def holes() -> np.ndarray[Any, Any]:
        return rng.random(rows) < 0.2

    return pa.table(
        {
            "row": pa.array(np.arange(first, first + rows), pa.int64()),
            "user": pa.array(rng.integers(0, VOCABULARY["user"], rows).astype(np.uint8), mask=holes()),
            "tags": pa.array(lists(4, VOCABULARY["tags"]), pa.list_(pa.int16())),
            "seen": pa.array(lists(9, VOCABULARY["seen"]), pa.large_list(pa.int32())),
            "age": pa.array(rng.normal(30, 4, rows), mask=holes()),
            "count": pa.array(rng.integers(0, 9, rows), pa.int32()),
            "click": pa.array(rng.random(rows) < 0.3, pa.bool_(), mask=holes()),
            "buy": pa.array((rng.random(rows) < 0.3).astype(np.float64)),
            "seconds": pa.array(rng.normal(size=rows).astype(np.float32), mask=holes()),
            "importance": pa.array(rng.random(rows)),
        }
    )


def write(folder: Path, files: Sequence[Sequence[int]], seed: int = 0, spec: dict[str, Any] | None = None) -> pa.Table:
    """Write a data set whose file i has row groups of ``files[i]`` rows; returns all its rows in order."""
    rows = table(sum(map(sum, files)), seed)
    write_rows(folder, files, rows, spec or SPEC)
    return rows


def write_rows(folder: Path, files: Sequence[Sequence[int]], rows: pa.Table, spec: dict[str, Any]) -> None:
    """Write ``rows`` as a data set whose file i has row groups of ``files[i]`` rows."""
    (folder / "train").mkdir(parents=True)
    start = 0
    for index, groups in enumerate(files):
        with pq.ParquetWriter(folder / "train" / f"part-{index:03d}.parquet", rows.schema) as writer:
            for count in groups:
                writer.write_table(rows.slice(start, count), row_group_size=max(count, 1))
                start += count
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))


def loader(folder: Path, **options: Any) -> BatchLoader:
    """A loader of the training split; options of DataConfig and of BatchLoader mixed."""
    own = {name: options.pop(name) for name in ("seed", "rank", "world_size", "shuffle") if name in options}
    labels = options.pop("labels", LABELS)
    config = DataConfig(path=str(folder), **{"batch_size": 8, "evaluation_batch_size": 8, "lanes": 4, **options})
    return BatchLoader(open_dataset(folder).split("train"), config, labels, **own)


def row_numbers(batch: Batch) -> list[int | None]:
    """The column row of each row of ``batch``, None for padding."""
    rows = batch.sparse.to_dict()["row"]
    values, lengths = rows.values().tolist(), rows.lengths().tolist()
    return [values.pop(0) if length else None for length in lengths]


def expected(rows: pa.Table, number: int | None, longest: int = 50) -> dict[str, Any]:
    """Expected values of a batch for the row ``number``, or for padding."""
    if number is None:
        nothing = [0.0] * len(LABELS)
        return {
            "row": [],
            "user": [],
            "tags": [],
            "seen": [],
            "dense": [0.0, 0.0],
            "labels": nothing,
            "weights": nothing,
        }
    row = {name: rows.column(name)[number].as_py() for name in rows.column_names}
    age = 0.0 if row["age"] is None else (row["age"] - MEAN) / STD
    return {
        "row": [row["row"]],
        "user": [] if row["user"] is None else [row["user"]],
        "tags": [tag for tag in row["tags"] or [] if tag is not None],
        "seen": [user for user in row["seen"] or [] if user is not None][-longest:],
        "dense": [age, float(row["count"])],
        "labels": [0.0 if row[name] is None else float(row[name]) for name in LABELS],
        "weights": [0.0 if row[name] is None else 1.0 for name in LABELS],
    }


def actual(batch: Batch) -> list[dict[str, Any]]:
    """Values of a batch, row by row."""
    columns: dict[str, list[Any]] = {
        key: [part.tolist() for part in feature.values().split(feature.lengths().tolist())]
        for key, feature in batch.sparse.to_dict().items()
    }
    columns |= {"dense": batch.dense.tolist(), "labels": batch.labels.tolist(), "weights": batch.weights.tolist()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
