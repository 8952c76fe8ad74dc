"""Fixed times of a training step: steps of a small model with few and with more tables, on a process alone.

Their rows and layers are so small that the time is that of the host: PyTorch, TorchRec, the loop.
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

FEW, MORE = 2, 34
"""Tables of the two models."""
ROWS = 16
"""Rows of a batch, and of a table."""
WARM_UP = 3
"""Steps of each model that do not count."""


def step_probes(device: torch.device) -> list[Probe]:
    """A step with :data:`FEW` and one with :data:`MORE` tables; the process group must be of this process alone."""
    quieten()
    return [_probe("step of few tables", FEW, device), _probe("step of more tables", MORE, device)]


def step_figures(seconds: Mapping[str, float]) -> dict[str, float]:
    """Fixed time of a step, and that of each table, from the times of :func:`step_probes`."""
    few, more = seconds["step of few tables"], seconds["step of more tables"]
    table = max((more - few) / (MORE - FEW), 0.0)
    return {"step": max(few - FEW * table, 0.0), "table": table}


def _probe(name: str, tables: int, device: torch.device) -> Probe:
    names = [f"table_{number}" for number in range(tables)]
    spec = DatasetSpec.model_validate({
        "name": "probe",
        "splits": {"train": {"folder": "train"}},
        "features": [{"name": each, "kind": "sparse", "vocabulary_size": ROWS} for each in names],
        "labels": [{"name": "click"}, {"name": "buy"}],
    })  # fmt: skip
    config = RunConfig.model_validate({
        "name": "probe",
        "data": {"path": "none", "batch_size": ROWS, "evaluation_batch_size": ROWS, "lanes": 1},
        "tasks": [{"name": "click"}, {"name": "buy"}],
        "model": {
            "embeddings": {"dim": 4, "pooling": "sum"},
            "interaction": {"name": "concat"},
            "multitask": {"name": "shared_bottom", "layers": [16]},
            "tower": {"layers": [16]},
        },
        "sharding": {"default": "table_wise", "processes_per_host": 1},
        "optimizer": {"sparse": {"name": "clippy_rowwise_adagrad"}},
    })  # fmt: skip
    process = Process(0, 1, device)
    model = build_model(config, spec, process)
    model.module.train()
    step = build_step(config, process, model, build_optimizers(config, model, 1000))
    ids = torch.arange(ROWS).repeat(tables)
    sparse = KeyedJaggedTensor(names, ids, lengths=torch.ones(tables * ROWS, dtype=torch.int32), stride=ROWS)
    labels = torch.arange(ROWS).view(-1, 1).remainder(2).float().expand(-1, 2).contiguous()
    batch = Batch(sparse, torch.empty(ROWS, 0), labels, torch.ones(ROWS, 2)).to(device)
    return Probe(name, lambda number: step([batch], number, 0))
