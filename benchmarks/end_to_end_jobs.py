"""The jobs of ``python -m benchmarks end-to-end``: their data in Parquet, and this project's configuration of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import dlrm_mtl
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.spec import DenseStatistics

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Job:
    """A training: model, batch and data."""

    name: str
    text: str
    """The job in a few words."""
    data: str
    """Folder of the data set; empty: to be written by :func:`write`."""
    batch: int
    dim: int
    rank: int | None
    """Rank of the cross layers; None: full."""
    cross_layers: int
    experts: int
    layers: tuple[int, ...]
    """Widths of each expert."""
    tower: tuple[int, ...]
    tasks: tuple[str, ...]
    norm: bool = False
    """True for layer normalisation and dropout 0.1 in experts and towers."""
    mean: bool = False
    """True to average bags, False to sum them."""
    tables: int = 0
    rows: int = 0
    ids: int = 1
    """Mean number of ids of a bag."""
    turn: int = 3
    """Steps of a turn."""
    batches: int = 8
    """Batches of the training split."""


def jobs(rows: int, quick: bool) -> list[Job]:
    """The three jobs, with ``rows`` rows in each table of the made ones; with ``quick`` the turns of kuairand are shorter."""
    return [
        Job(
            name="dense-heavy",
            text=f"26 tables x {rows:,} x 64, one id each, DCN-V2 rank 64 x 2, MMoE 8 x [256], batch 8,192",
            data="",
            batch=8192,
            dim=64,
            rank=64,
            cross_layers=2,
            experts=8,
            layers=(256,),
            tower=(64,),
            tasks=("y0", "y1"),
            tables=26,
            rows=rows,
            turn=1,
        ),
        Job(
            name="table-heavy",
            text=f"16 tables x {rows:,} x 64, means of 20 ids, Zipf 1.05, DCN-V2 rank 16 x 2, MMoE 4 x [64], batch 4,096",
            data="",
            batch=4096,
            dim=64,
            rank=16,
            cross_layers=2,
            experts=4,
            layers=(64,),
            tower=(64,),
            tasks=("y0", "y1"),
            mean=True,
            tables=16,
            rows=rows,
            ids=20,
            turn=4,
            batches=16,
        ),
        Job(
            name="kuairand",
            text="the job of `make train` (configs/kuairand_mmoe.yaml) on one process, batch 512",
            data=str(ROOT / "datasets/kuairand_pure"),
            batch=512,
            dim=8,
            rank=None,
            cross_layers=1,
            experts=8,
            layers=(64,),
            tower=(32,),
            tasks=("is_click", "long_view", "is_like", "is_profile_enter"),
            norm=True,
            turn=20 if quick else 50,
        ),
    ]


def write(job: Job, folder: Path) -> None:
    """Write the data set of a made job into ``folder``: ids by Zipf's law, k ** -1.05, ranks in random order."""
    rng = np.random.default_rng(0)
    count = job.batch * job.batches
    shares = np.cumsum(np.arange(1, job.rows + 1) ** -1.05)
    columns: dict[str, Any] = {}
    for table in range(job.tables):
        lengths = np.ones(count, np.int64) if job.ids == 1 else rng.integers(0, 2 * job.ids + 1, count)
        ranks = np.searchsorted(shares, rng.random(int(lengths.sum())) * shares[-1])
        ids = rng.permutation(job.rows).astype(np.int32)[ranks]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns[f"s{table}"] = ids if job.ids == 1 else pa.ListArray.from_arrays(offsets, ids)
    for task in job.tasks:
        columns[task] = (rng.random(count) < 0.1).astype(np.int8)
    (folder / "train").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "train" / "part-0.parquet", row_group_size=2 * job.batch)
    features = [{"name": f"s{n}", "kind": "sparse", "vocabulary_size": job.rows} for n in range(job.tables)]
    spec = {"name": job.name, "splits": {"train": {"folder": "train"}}, "features": features}
    spec["labels"] = [{"name": task} for task in job.tasks]
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))


def configuration(job: Job, data: str, compiled: bool) -> dlrm_mtl.RunConfig:
    """This project's configuration of a job: Clippy for tables and dense part, as in `make train`."""
    forever = {"epochs": 1_000_000, "evaluate_every": 10**9, "checkpoint_every": 10**9, "stall_timeout": None}
    if compiled:
        forever["compile"] = True
    overrides = [f"training.{key}={yaml.safe_dump(value).split(chr(10))[0]}" for key, value in forever.items()]
    if job.tables == 0:
        return dlrm_mtl.load_config(str(ROOT / "configs/kuairand_mmoe.yaml"), [f"data.path={data}", *overrides])
    kuairand = yaml.safe_load((ROOT / "configs/base/kuairand.yaml").read_text())
    content = {
        "name": job.name,
        "seed": 1,
        "data": {"path": data, "batch_size": job.batch, "lanes": 8, "block_rows": job.batch // 4},
        "tasks": [{"name": task} for task in job.tasks],
        "model": {
            "embeddings": {"dim": job.dim, "pooling": "mean" if job.mean else "sum"},
            "interaction": {"name": "dcnv2", "layers": job.cross_layers, "rank": job.rank},
            "multitask": {"name": "mmoe", "experts": job.experts, "layers": list(job.layers)},
            "tower": {"layers": list(job.tower)},
        },
        "optimizer": kuairand["optimizer"],
    }
    file = Path(data) / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    return dlrm_mtl.load_config(str(file), overrides)


@dataclass(frozen=True)
class Columns:
    """Columns of a job's data set, for code that reads it without this project."""

    files: list[str]
    sparse: dict[str, str]
    """Table of each sparse feature, by name."""
    tables: dict[str, int]
    """Rows of each table."""
    dense: dict[str, tuple[float, float]]
    """Mean and deviation of each dense feature."""
    labels: tuple[str, ...]


def columns(job: Job, data: str) -> Columns:
    """What dataset.yaml in ``data`` says about the columns of ``job``."""
    dataset = open_dataset(data)
    spec = dataset.spec
    known = [feature for feature in spec.features if feature.kind != "dense"]
    owners = {feature.name: spec.vocabulary_owner(feature.name) for feature in known}
    return Columns(
        files=[file.path for file in dataset.split("train").files],
        sparse=owners,
        tables={owner: spec.vocabulary_size(owner) for owner in dict.fromkeys(owners.values())},
        dense={
            feature.name: (feature.statistics.mean, feature.statistics.std or 1.0)
            for feature in spec.features
            if isinstance(feature.statistics, DenseStatistics)
        },
        labels=job.tasks,
    )
