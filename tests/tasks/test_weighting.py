"""Learned and dynamic weights of tasks."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from dlrm_mtl.tasks.weighting import (
    DynamicWeightAverage,
    FixedWeighting,
    TaskWeightingConfig,
    UncertaintyWeighting,
)
from tests.processes import run_processes

ONES = torch.ones(3)


def test_names_and_options() -> None:
    parse = TypeAdapter(TaskWeightingConfig).validate_python
    assert isinstance(parse("fixed").build(3), FixedWeighting)
    learned = parse({"name": "uncertainty", "initial_log_variance": 0.25}).build(3)
    assert isinstance(learned, UncertaintyWeighting)
    assert learned.log_variances.tolist() == [0.25] * 3
    dynamic = parse({"name": "dwa", "temperature": 1}).build(3)
    assert isinstance(dynamic, DynamicWeightAverage)
    assert dynamic.temperature == 1


def test_fixed_weights_have_no_state() -> None:
    assert FixedWeighting(3).state_dict() == {}
    assert FixedWeighting(3).terms(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 0, 2]), ONES).sum() == 7


def test_uncertainty_weights_against_the_formula() -> None:
    weighting = UncertaintyWeighting(3).double()
    losses = torch.tensor([0.7, 0.1, 3.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    s = -0.5
    wanted = sum(
        w * (loss / (2 * math.exp(s)) + s / 2) for w, loss in zip(weights.tolist(), losses.tolist(), strict=True)
    )
    assert weighting.terms(losses, weights, ONES).sum().item() == pytest.approx(wanted)

    def function(parts: Tensor, log_variances: Tensor) -> Tensor:
        call = {"log_variances": log_variances}
        return torch.func.functional_call(
            Combine(weighting), {f"inner.{k}": v for k, v in call.items()}, (parts, weights)
        )

    start = torch.tensor([-0.5, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (losses, start))


class Combine(torch.nn.Module):
    """``combine`` as ``forward``."""

    def __init__(self, inner: UncertaintyWeighting) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, parts: Tensor, weights: Tensor) -> Tensor:
        return self.inner.terms(parts, weights, ONES).sum()


def test_log_variances_go_to_the_logarithm_of_the_loss_whatever_the_weight() -> None:
    weighting = UncertaintyWeighting(2)
    losses = torch.tensor([0.2, 4.0])
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        weighting.terms(losses, torch.tensor([1.0, 0.5]), torch.ones(2)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(weighting.log_variances.detach(), losses.log(), rtol=1e-3, atol=1e-3)


def test_a_task_without_rows_keeps_its_log_variance() -> None:
    weighting = UncertaintyWeighting(2)
    weighting.terms(torch.tensor([0.3, 0.0]), torch.ones(2), torch.tensor([5.0, 0.0])).sum().backward()
    assert weighting.log_variances.grad[1] == 0
    assert weighting.log_variances.grad[0] != 0


def test_dynamic_weights_against_the_formula() -> None:
    weighting = DynamicWeightAverage(3, temperature=2.0)
    epochs = [[[1.0, 2, 3], [3.0, 2, 1]], [[1.0, 1.5, 1], [1.0, 0.5, 1]], [[0.5, 1, 2], [0.5, 1, 1]]]
    for number, steps in enumerate(epochs):
        weighting.start(number)
        if number < 2:
            assert weighting.weights.tolist() == [1.0, 1.0, 1.0]
        for losses in steps:
            weighting.start(number)
            weighting.observe(torch.tensor(losses), ONES)
    assert weighting.weights.tolist() == pytest.approx([1.0] * 3), "all losses fell by half"
    weighting.start(3)
    ratios = [0.5 / 1.0, 1.0 / 1.0, 1.5 / 1.0]
    exponentials = [math.exp(ratio / 2) for ratio in ratios]
    wanted = [3 * value / sum(exponentials) for value in exponentials]
    assert weighting.weights.tolist() == pytest.approx(wanted)
    parts = torch.tensor([1.0, 2.0, 3.0])
    combined = weighting.terms(parts, torch.tensor([1.0, 0.0, 2.0]), ONES).sum()
    assert combined.item() == pytest.approx(wanted[0] + 6 * wanted[2])


def test_dynamic_weights_leave_out_steps_without_rows_and_tasks_without_a_loss() -> None:
    weighting = DynamicWeightAverage(2)
    for epoch, loss in enumerate([2.0, 1.0, 0.0]):
        weighting.start(epoch)
        weighting.observe(torch.tensor([loss, 0.0]), torch.tensor([1.0, 0.0]))
        weighting.observe(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0]))
    assert weighting.means[1, 0] == 1.0, "one step counted"
    half, one = math.exp(0.25), math.exp(0.5)
    assert weighting.weights.tolist() == pytest.approx([2 * half / (half + one), 2 * one / (half + one)])


def test_dynamic_weights_go_on_from_their_state() -> None:
    one, other = DynamicWeightAverage(2), DynamicWeightAverage(2)
    losses = torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(0))
    for epoch in range(4):
        for step in range(5):
            if (epoch, step) == (2, 3):  # in the middle of an epoch
                other.load_state_dict(one.state_dict())
            for weighting in [one] if (epoch, step) < (2, 3) else [one, other]:
                weighting.start(epoch)
                weighting.observe(losses[epoch, step], torch.ones(2))
    one.start(4), other.start(4)
    assert one.weights.tolist() != [1.0, 1.0]
    assert torch.equal(one.weights, other.weights)


def gradients(rank: int) -> tuple[list[float], list[float]]:
    """The log variances' gradient averaged over processes, and the dynamic weights."""
    import torch.distributed as dist

    from dlrm_mtl.tasks.config import TaskConfig
    from dlrm_mtl.tasks.losses import TaskLosses

    world = dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 2, generator=generator), (torch.rand(8, 2, generator=generator) < 0.5).float()
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    tasks = [TaskConfig(name="a"), TaskConfig(name="b", weight=0.5)]
    learned, dynamic = UncertaintyWeighting(2), DynamicWeightAverage(2)
    totals = torch.full((2,), 8.0)
    terms, _ = TaskLosses(tasks, torch.device("cpu"), learned)(
        logits[mine], labels[mine], torch.ones(8 // world, 2), totals
    )
    terms.sum().backward()
    dist.all_reduce(learned.log_variances.grad)
    for epoch in range(3):
        dynamic.start(epoch)
        scale = 1.0 if epoch == 0 else labels[mine]
        _, parts = TaskLosses(tasks, torch.device("cpu"))(
            logits[mine] * scale, labels[mine], torch.ones(8 // world, 2), totals
        )
        dynamic.observe(parts, totals)
    return (learned.log_variances.grad / world).tolist(), dynamic.weights.tolist()


def test_weights_do_not_depend_on_the_number_of_processes() -> None:
    (alone,) = run_processes(1, gradients)
    assert alone[1] != [1.0, 1.0]
    for learned, dynamic in run_processes(2, gradients):
        assert learned == pytest.approx(alone[0], rel=1e-6)
        assert dynamic == pytest.approx(alone[1], rel=1e-6)
