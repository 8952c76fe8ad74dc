"""Fixed times of a training step: steps of small models, taken by all processes together.

Their rows and layers are so small that the time is that of the host: PyTorch, TorchRec, the loop. One model has few tables,
the second has more, and the third has as many as the first but of two sharding types, whose exchanges are apart. The second
tells the time of a table, and the third that of a collective.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.scaling.probes import Probe
from dlrm_mtl.training.build import build_model, build_optimizers, build_step, quieten

FEW = 2
"""Tables of the first and the third model, for each process."""
MORE = 64
"""Tables that the second model has beside as many as the first."""
ROWS = 16
"""Rows of a batch on each process, and of a table for each process."""
WARM_UP = 3
"""Steps of each model that do not count."""
COLLECTIVES = 8
"""Collectives of a step of the first model: five of its tables, DDP's, and two of the update."""
OF_A_TYPE = 5
"""Collectives of the tables of one sharding type: split sizes, lengths, ids, vectors, and their gradients."""


def step_probes(process: Process) -> list[Probe]:
    """Steps of the three models; all processes of the group must take them together."""
    quieten()
    few = FEW * process.world_size
    return [
        _probe("step of few tables", few, 0, process),
        _probe("step of more tables", few + MORE, 0, process),
        _probe("step of two types", few, few // 2, process),
    ]


def step_figures(seconds: Mapping[str, float], kernel: float, latency: float, processes: int) -> dict[str, float]:
    """Fixed time of a step, of each table, and of a collective beyond its latency, from the times of :func:`step_probes`.

    Args:
        seconds: times by name of the probe.
        kernel: time of a lookup or an update of one group of tables.
        latency: time of a collective without data.
        processes: number of processes; one alone has no collectives.
    """
    few = seconds["step of few tables"]
    table = max(seconds["step of more tables"] - few, 0.0) / MORE
    collective = 0.0
    if processes > 1:
        apart = seconds["step of two types"] - few - 2 * kernel
        collective = max(apart / OF_A_TYPE - latency, 0.0)
        few -= COLLECTIVES * (collective + latency)
    return {"step": max(few - FEW * processes * table, 0.0), "table": table, "collective": collective}


def _probe(name: str, tables: int, by_rows: int, process: Process) -> Probe:
    """A step of a model of so many tables, of which ``by_rows`` are row_wise and the others table_wise."""
    names = [f"table_{number}" for number in range(tables)]
    rows = ROWS * process.world_size
    spec = DatasetSpec.model_validate({
        "name": "probe",
        "splits": {"train": {"folder": "train"}},
        "features": [{"name": each, "kind": "sparse", "vocabulary_size": rows} for each in names],
        "labels": [{"name": "click"}, {"name": "buy"}],
    })  # fmt: skip
    config = RunConfig.model_validate({
        "name": "probe",
        "data": {"path": "none", "batch_size": rows, "evaluation_batch_size": rows, "lanes": process.world_size},
        "tasks": [{"name": "click"}, {"name": "buy"}],
        "model": {
            "embeddings": {"dim": 4, "pooling": "sum"},
            "interaction": {"name": "concat"},
            "multitask": {"name": "shared_bottom", "layers": [16]},
            "tower": {"layers": [16]},
        },
        "sharding": {"default": "table_wise", "tables": dict.fromkeys(names[:by_rows], "row_wise")},
        "optimizer": {"sparse": {"name": "clippy_rowwise_adagrad"}},
    })  # fmt: skip
    model = build_model(config, spec, process)
    model.module.train()
    step = build_step(config, process, model, build_optimizers(config, model, 1000))
    ids = torch.arange(ROWS).repeat(tables) + ROWS * process.rank
    sparse = KeyedJaggedTensor(names, ids, lengths=torch.ones(tables * ROWS, dtype=torch.int32), stride=ROWS)
    labels = torch.arange(ROWS).view(-1, 1).remainder(2).float().expand(-1, 2).contiguous()
    batch = Batch(sparse, torch.empty(ROWS, 0), labels, torch.ones(ROWS, 2)).to(process.device)
    return Probe(name, lambda number: step([batch], number, 0))
