"""A model that has no parameters outside its tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests import synthetic
from tests.processes import run_processes

CASES: dict[str, dict[str, Any]] = {
    "clippy": {},
    "adam": {"optimizer.dense": "{name: adam, learning_rate: 0.02}"},
    "balanced": {"balancing": "{name: pcgrad, every: 2}"},
}


def train(rank: int, dataset: Path, runs: Path) -> dict[str, float]:
    """Log loss of the test split for every case, by a model that adds up the first numbers of its vectors."""
    from typing import Literal

    import yaml
    from torch import Tensor

    import dlrm_mtl
    from dlrm_mtl.embeddings.config import EmbeddingsConfig
    from dlrm_mtl.embeddings.tables import table_set
    from dlrm_mtl.models.base import ModelInputs, RankingModel, RankingModelConfig

    class SumsConfig(RankingModelConfig):
        name: Literal["sums"] = "sums"
        embeddings: EmbeddingsConfig = EmbeddingsConfig()

    @dlrm_mtl.register("model", "sums", config=SumsConfig)
    class Sums(RankingModel):
        def __init__(self, config: SumsConfig, inputs: ModelInputs) -> None:
            super().__init__(table_set(inputs.spec, list(inputs.sparse), config.embeddings), inputs.tasks)

        def own_logits(self, features: Tensor, dense: Tensor) -> Tensor:
            return features.unflatten(1, (-1, 8)).sum(dim=1)[:, :2]

    model = {"name": "sums", "embeddings": {"dim": 8, "init_std": 0.1}}
    content = synthetic.config(dataset, model=model, training={"epochs": 1}, optimizer={})
    file = runs / f"run-{rank}.yaml"
    file.write_text(yaml.safe_dump(content))
    found = {}
    for case, changes in CASES.items():
        config = dlrm_mtl.load_config(str(file), [f"{key}={value}" for key, value in changes.items()])
        run = dlrm_mtl.train(config, runs / case, progress=False)
        found[case] = run.metrics["click/log_loss"]
    return found


def test_it_learns(tmp_path: Path) -> None:
    dataset = synthetic.write_dataset(tmp_path / "data")
    found = run_processes(2, train, dataset, tmp_path)[0]
    assert found["clippy"] == pytest.approx(found["adam"], rel=1e-6)
    assert all(loss < 0.99 * math.log(2) for loss in found.values()), found
