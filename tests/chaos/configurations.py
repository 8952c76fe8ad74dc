"""Small trainings that `tests.chaos` kills: their data, and their configurations."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests import hashed, synthetic

CHECKPOINT_EVERY = 3
ROWS = 600
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "log_every": 1,
    "checkpoint_every": CHECKPOINT_EVERY,
    "evaluate_every": 7,
    "keep_checkpoints": 1000,
    "stall_timeout": 60,
}
MIXTURE = {"user": "row_wise", "item": {"type": "column_wise", "column_shards": 2}, "tags": "data_parallel"}


@dataclass(frozen=True)
class Training:
    """A training to kill."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Changes of the configuration of :mod:`tests.synthetic`."""
    write_dataset: Callable[[Path, int], Path] = synthetic.write_dataset
    unbounded: dict[str, Any] = field(default_factory=dict)
    """``data.unbounded``."""
    arrivals: Sequence[Sequence[str]] = ()
    """Growing data: files of the training split that are there when the run, or its next part, starts."""

    @property
    def parts(self) -> int:
        """Number of commands that an undisturbed run takes."""
        return max(1, len(self.arrivals))

    def config(self, data: Path, checkpoint_every: int) -> dict[str, Any]:
        """The configuration of a run."""
        training = {**TRAINING, "checkpoint_every": checkpoint_every}
        content: dict[str, Any] = hashed.config(data, self.unbounded, **self.changes, training=training)
        if self.arrivals:
            content["data"].update(growing=True, batch_size=32)
            training["epochs"] = 1
        return content


def with_numbered_rows(folder: Path, rows: int) -> Path:
    """A data set with unbounded ids, and a column with another id in each row of the training split, in four files."""
    hashed.write_dataset(folder, rows)
    spec = yaml.safe_load((folder / "dataset.yaml").read_text())
    spec["features"].append({"name": "row", "kind": "sparse", "unbounded": True})
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    for split in ("train", "validation", "test"):
        paths = sorted((folder / split).glob("*.parquet"))
        table = pq.ParquetDataset(paths).read()
        numbers = table["row"].to_numpy() + 1
        place = table.column_names.index("row")
        table = table.set_column(place, "row", [hashed.scatter(numbers + (0 if split == "train" else 10**6))])
        for path in paths:
            path.unlink()
        quarter = -(-table.num_rows // 4)
        for part in range(4):
            pq.write_table(
                table.slice(part * quarter, quarter), folder / split / f"part-{part}.parquet", row_group_size=60
            )
    return folder


TRAININGS: dict[str, Training] = {
    "mixed sharding": Training({"sharding": {"default": "table_wise", "tables": MIXTURE}}),
    "row-wise Adam": Training(
        {
            "sharding": {"default": "table_row_wise", "processes_per_host": 2},
            "optimizer": {
                "sparse": {"name": "rowwise_adam", "learning_rate": 0.02},
                "schedule": {"warmup_steps": 5, "decay": "cosine"},
            },
        }
    ),
    "Clippy": Training(
        {
            "sharding": {"default": "grid_shard", "processes_per_host": 2, "tables": {"tags": "data_parallel"}},
            "optimizer": {
                "sparse": {
                    "name": "clippy_rowwise_adagrad",
                    "learning_rate": 1.0,
                    "initial_accumulator_value": 1e-4,
                },
                "dense": {"name": "clippy_adagrad", "learning_rate": 0.1},
            },
        }
    ),
    "growing data": Training(
        {"sharding": {"default": "row_wise"}},
        with_numbered_rows,
        {"user": {"rows": 41, "eviction": "lru"}, "item": 150, "row": 4 * ROWS},
        [["part-0.parquet", "part-1.parquet"], ["part-2.parquet", "part-3.parquet"]],
    ),
    "MetaBalance": Training(
        {
            "sharding": {"default": "table_wise", "tables": {"item": "column_wise", "user": "data_parallel"}},
            "balancing": {"name": "metabalance", "target": "click"},
        },
        hashed.write_dataset,
        {"user": {"rows": 41, "eviction": "lru"}, "item": {"rows": 150, "eviction": "lfu"}},
    ),
}


def arrive(source: Path, data: Path, training: Training, part: int) -> None:
    """Give ``data`` the files of the data set ``source`` that are there in a part of the run, with their times."""
    for path in sorted(source.rglob("*")):
        place = data / path.relative_to(source)
        here = path.parent.name != "train" or not training.arrivals or path.name in training.arrivals[part]
        if path.is_file() and here and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
