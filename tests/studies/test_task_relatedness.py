"""studies/task_relatedness.py runs, and trains what it says."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from studies import task_relatedness as study

ROOT = Path(__file__).parents[2]
TINY = dataclasses.replace(study.QUICK, cosines=(-1.0, 0.5), parameters=3000, steps=3, rows=8, held_out=50)


def test_quick_run_writes_figures_and_plot(tmp_path: Path) -> None:
    figures, drawing = tmp_path / "figures.json", tmp_path / "plot.svg"
    line = [sys.executable, "-m", "studies", "task_relatedness", "--quick", "--seeds", "3", "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*line, "--json", figures, "--plot", drawing], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(figures.read_text())
    assert {(case["cosine"], case["architecture"]) for case in results["cases"]} == {
        (cosine, name) for cosine in (0.0, 1.0) for name in study.ARCHITECTURES
    }
    for case in results["cases"]:
        assert len(case["errors"]) == 3
        assert case["low"] <= case["ratio"] <= case["high"]
        assert case["architecture"] in done.stdout
    assert all(rate in (3e-3, 1e-2) for rate in results["rates"].values())
    aim = results["size"]["parameters"]
    assert all(abs(count - aim) < 0.05 * aim for count in results["parameters"].values())
    assert drawing.read_text().startswith("<svg")


def test_too_few_seeds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        study.main(["--seeds", "1"])
    assert stopped.value.code == 2
    assert "--seeds 1: an interval needs 2 seeds" in capsys.readouterr().err


def test_tasks_have_the_planted_cosine() -> None:
    problems = study.Problems([-1.0, 0.0, 0.5, 1.0], [3, 4])
    directions = problems.directions.double()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(8, 2, dtype=torch.float64))
    cosines = directions.prod(dim=2).sum(1)
    expected = torch.tensor([-1.0, 0.0, 0.5, 1.0], dtype=torch.float64).repeat_interleave(2)
    torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=0)
    x, targets = problems.rows(5, noise=0.0)
    along = (x[5] @ directions[5].float())[2, 1].item()  # cosine 0.5, seed 4, row 2, task 2
    value = along + sum(torch.sin((i + 1) * torch.tensor(along) + problems.phases[5, 0, 0, i]) for i in range(3))
    assert targets[5, 2, 1].item() == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize("name", study.ARCHITECTURES)
def test_models_that_are_trained_together_do_not_meet(name: str) -> None:
    together = study.train(name, 0.01, [5, 6], TINY)
    for cosine in TINY.cosines:
        problem = study.Problems([cosine], [6])
        torch.manual_seed(6)
        model = study.Ranker(study.config_of(name, TINY.parameters)[0])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(TINY.steps):
            x, targets = problem.rows(TINY.rows)
            loss = torch.nn.functional.mse_loss(model(x[0]), targets[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x, targets = problem.rows(TINY.held_out, noise=0.0)
        with torch.no_grad():
            errors = (model(x[0]) - targets[0]).square().mean(0) / targets[0].var(0)
        assert together[cosine][1] == pytest.approx(errors.mean().item(), rel=1e-3)
