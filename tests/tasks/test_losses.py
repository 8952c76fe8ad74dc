"""One loss per task over the global batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dlrm_mtl.tasks.binary import focal
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.losses import TaskLosses
from tests.processes import run_processes

TASKS = [
    TaskConfig(name="a", weight=2),
    TaskConfig(name="b", loss="huber", weight=0.5),
    TaskConfig(name="c", positive_weight=4),
    TaskConfig(name="d", loss={"name": "focal", "gamma": 1, "alpha": 0.3}),
    TaskConfig(name="e", loss="huber"),
    TaskConfig(name="f", loss="mean_absolute_error"),
    TaskConfig(name="g", loss="mean_squared_error"),
]
CPU = torch.device("cpu")


def batch(rows: int, tasks: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, tasks, generator=generator)
    labels = (torch.rand(rows, tasks, generator=generator) < 0.4).float()
    weights = torch.rand(rows, tasks, generator=generator) * (torch.rand(rows, tasks, generator=generator) < 0.8)
    return logits, labels, weights


def expected_parts(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Column by column, with weighted means written out."""
    bce = F.binary_cross_entropy_with_logits
    z, y = logits.unbind(1), labels.unbind(1)
    rows = [
        bce(z[0], y[0], reduction="none"),
        F.huber_loss(z[1], y[1], reduction="none"),
        bce(z[2], y[2], reduction="none", pos_weight=torch.tensor(4.0)),
        focal(z[3], y[3], gamma=1, alpha=0.3),
        F.huber_loss(z[4], y[4], reduction="none"),
        (z[5] - y[5]).abs(),
        (z[6] - y[6]) ** 2,
    ]
    return torch.stack(
        [(row * weight).sum() / weight.sum() for row, weight in zip(rows, weights.unbind(1), strict=True)]
    )


def test_every_task_gets_its_own_loss_and_weight() -> None:
    logits, labels, weights = batch(50, len(TASKS))
    terms, parts = TaskLosses(TASKS, CPU)(logits, labels, weights, weights.sum(0))
    wanted = expected_parts(logits, labels, weights)
    torch.testing.assert_close(parts, wanted)
    torch.testing.assert_close(terms, wanted * torch.tensor([2, 0.5, 1, 1, 1, 1, 1]))


def test_a_task_without_any_weight_has_loss_and_gradient_zero() -> None:
    logits, labels, weights = batch(8, 2)
    weights[:, 1] = 0
    logits.requires_grad_()
    terms, parts = TaskLosses(TASKS[:2], CPU)(logits, labels, weights, weights.sum(0))
    terms.sum().backward()
    assert parts[1] == 0
    assert (logits.grad[:, 1] == 0).all()
    assert (logits.grad[:, 0] != 0).any()


def test_negative_sampling_leaves_the_best_logit_where_it_was() -> None:
    """Of 1000 rows 40 are positive; with 96 of the 960 negatives, the loss is least at the logit of 4 %."""
    task = TaskConfig(name="a", negative_sampling=0.1)
    labels = torch.cat([torch.ones(40, 1), torch.zeros(96, 1)])
    rate = math.log(0.04 / 0.96)
    logits = torch.full_like(labels, rate).requires_grad_()
    weights = torch.ones_like(labels)
    terms, _ = TaskLosses([task], CPU)(logits, labels, weights, weights.sum(0))
    terms.sum().backward()
    assert logits.grad.sum().item() == pytest.approx(0.0, abs=1e-6)


def of_process(rank: int, rows: int) -> tuple[list[float], list[list[float]]]:
    """The parts summed over processes, and the gradient that averaging over them gives."""
    import torch.distributed as dist

    world = dist.get_world_size()
    logits, labels, weights = batch(rows, len(TASKS))
    weights[: rows // 2, 0] = 0  # one process holds nothing of the first task
    totals = weights.sum(0)
    mine = slice(rank * rows // world, (rank + 1) * rows // world)
    logits.requires_grad_()
    terms, parts = TaskLosses(TASKS, CPU)(logits[mine], labels[mine], weights[mine], totals)
    terms.sum().backward()
    dist.all_reduce(parts)
    dist.all_reduce(logits.grad)
    return parts.tolist(), (logits.grad / world).tolist()


def test_the_mean_is_over_the_global_batch() -> None:
    (alone,) = run_processes(1, of_process, 24)
    for parts, gradient in run_processes(2, of_process, 24):
        torch.testing.assert_close(parts, alone[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.tensor(gradient), torch.tensor(alone[1]), rtol=1e-6, atol=1e-9)
