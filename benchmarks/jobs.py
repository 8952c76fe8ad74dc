"""Jobs of a given shape for benchmarks: a small data set of random rows, and the parts of a run on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.spec import DATASET_FILE, DatasetSpec
from dlrm_mtl.data.statistics import write_spec
from dlrm_mtl.training.build import build_model, build_optimizers, build_step
from dlrm_mtl.training.loaders import training_loader
from dlrm_mtl.training.tensors import RunTensors


@dataclass(frozen=True)
class Shape:
    """Shape of a job."""

    tables: int = 8
    rows: int = 100_000
    """Rows of each table."""
    dim: int = 16
    ids: int = 1
    """Ids of each bag."""
    batch: int = 1024
    tasks: int = 2

    @property
    def weights(self) -> int:
        """Number of weights of all tables."""
        return self.tables * self.rows * self.dim


def write_data(folder: Path, shape: Shape, batches: int) -> None:
    """Write a data set of ``batches`` batches of uniform ids."""
    random, rows = np.random.default_rng(0), shape.batch * batches
    columns: dict[str, pa.Array] = {}
    for number in range(shape.tables):
        ids = pa.array(random.integers(1, shape.rows, rows * shape.ids))
        offsets = pa.array(np.arange(0, rows * shape.ids + 1, shape.ids, dtype=np.int32))
        columns[f"t{number}"] = ids if shape.ids == 1 else pa.ListArray.from_arrays(offsets, ids)
    for number in range(shape.tasks):
        columns[f"y{number}"] = pa.array(random.integers(0, 2, rows).astype(np.float32))
    (folder / "train").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "train" / "0.parquet")
    content = {
        "name": "shape",
        "splits": {"train": {"folder": "train"}},
        "features": [{"name": f"t{n}", "kind": "sparse", "vocabulary_size": shape.rows} for n in range(shape.tables)],
        "labels": [{"name": f"y{number}"} for number in range(shape.tasks)],
    }
    write_spec(folder / DATASET_FILE, DatasetSpec.model_validate(content))


def configuration(folder: Path, shape: Shape) -> RunConfig:
    """Configuration of a job on the data set in ``folder``."""
    content = {
        "name": "shape",
        "data": {"path": str(folder), "batch_size": shape.batch},
        "tasks": [{"name": f"y{number}"} for number in range(shape.tasks)],
        "model": {
            "embeddings": {"dim": shape.dim},
            "interaction": {"name": "concat"},
            "multitask": {"name": "shared_bottom", "layers": [64]},
            "tower": {"layers": [32]},
        },
        "optimizer": {
            "sparse": {"name": "clippy_rowwise_adagrad", "learning_rate": 0.1},
            "dense": {"name": "clippy_adagrad", "learning_rate": 0.1},
        },
        "training": {"epochs": 1},
    }
    return RunConfig.model_validate(content)


class Job:
    """The parts of a run: to be opened, built and optimized, in this order, before steps are taken.

    Args:
        config: configuration.
        process: this process.
    """

    def __init__(self, config: RunConfig, process: Process) -> None:
        self.config = config
        self.process = process

    def open(self) -> None:
        """Open the data set and check its files."""
        self.dataset = open_dataset(self.config.data.path)
        self.loader = training_loader(self.config, self.dataset.split("train"), self.process)

    def build(self) -> None:
        """Plan, shard and initialise the model."""
        self.model = build_model(self.config, self.dataset.spec, self.process)

    def optimize(self) -> None:
        """Make the optimizers and the training step."""
        self.optimizers = build_optimizers(self.config, self.model, 100)
        self.step = build_step(self.config, self.process, self.model, self.optimizers)
        self.tensors = RunTensors(self.model, self.optimizers)

    def steps(self) -> Iterator[float]:
        """Take steps: seconds of the processor in this thread for each one, without waiting for data."""
        batches: Iterator[Batch] = self.loader.epoch(0)
        for number, batch in enumerate(batches):
            begin = time.thread_time()
            self.step([batch], number, 0)
            yield time.thread_time() - begin
