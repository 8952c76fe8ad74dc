"""Balancing every few steps: one coefficient per task in between, which is state of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import dlrm_mtl
from dlrm_mtl.balancing.base import task_coefficients
from tests import commands, synthetic

BALANCING: dict[str, Any] = {"name": "metabalance", "target": "click", "every": 4}


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), tensors=st.integers(1, 6), tasks=st.integers(1, 4))
def test_a_task_has_the_coefficient_closest_to_those_of_the_tensors(seed: int, tensors: int, tasks: int) -> None:
    """Against least squares on written-out gradients, which are [tensors, tasks, 5]."""
    numbers = torch.Generator().manual_seed(seed)
    gradients = torch.randn(tensors, tasks, 5, generator=numbers, dtype=torch.float64)
    per_tensor = torch.randn(tensors, tasks, generator=numbers, dtype=torch.float64)
    found = task_coefficients(per_tensor, gradients @ gradients.mT)
    for task in range(tasks):
        whole = gradients[:, task].flatten().unsqueeze(1)
        wanted = (gradients[:, task] * per_tensor[:, task, None]).flatten().unsqueeze(1)
        torch.testing.assert_close(found[task], torch.linalg.lstsq(whole, wanted).solution.squeeze())


def test_a_task_without_gradient_keeps_its_weight() -> None:
    gram = torch.diag(torch.tensor([0.0, 2.0], dtype=torch.float64)).expand(3, 2, 2)
    assert task_coefficients(torch.full((3, 2), 5.0, dtype=torch.float64), gram).tolist() == [1.0, 5.0]


def test_a_run_resumed_between_balanced_steps_goes_on_bit_for_bit(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path / "data", rows=500)
    training = {"epochs": 1, "max_steps": 2, "log_every": 1}
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(synthetic.config(tmp_path / "data", balancing=BALANCING, training=training))
    )

    def train(folder: str, steps: int, resume: bool = False) -> None:
        config = dlrm_mtl.load_config(tmp_path / "run.yaml", overrides=[f"training.max_steps={steps}"])
        dlrm_mtl.train(config, tmp_path / folder, resume=resume, progress=False)

    train("whole", 7)
    train("parts", 2)
    train("parts", 7, resume=True)
    whole, parts = (commands.losses(tmp_path / folder / "metrics.jsonl") for folder in ("whole", "parts"))
    assert len(whole) == 7
    assert parts == whole
