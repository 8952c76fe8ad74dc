"""Properties of all methods for gradients of any number, size and direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, BalancerConfig, TargetConfig
from dlrm_mtl.balancing.metabalance import MetaBalance, MetaBalanceConfig
from dlrm_mtl.balancing.pcgrad import PCGrad, PCGradConfig
from dlrm_mtl.balancing.surgery import SurgeryConfig
from dlrm_mtl.core.registry import registry

Matrix = NDArray[np.float64]
BALANCERS = {entry.config: entry.part for entry in registry("balancer")}
METHODS = sorted(BALANCERS, key=lambda config: config.model_fields["name"].default)
RANDOM = {"pcgrad", "gradvac"}
NAMES = [f"task{number}" for number in range(16)]


def configured(method: type[BalancerConfig]) -> BalancerConfig:
    return method(target="task0") if issubclass(method, TargetConfig) else method()


def name_of(method: type[BalancerConfig]) -> str:
    return str(method.model_fields["name"].default)


@st.composite
def gradients(draw: st.DrawFn, least: int = 1, most: int = 6) -> Matrix:
    """[T, n] float32 values: of any size, parallel, opposed or zero now and then."""
    tasks = draw(st.integers(least, most))
    width = draw(st.integers(1, 8))
    number = st.floats(-1, 1, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)
    rows = draw(arrays(np.float64, (tasks, width), elements=number))
    for task in range(tasks):
        kind = draw(st.sampled_from(["own", "own", "own", "zero", "copy", "opposed"]))
        if kind == "zero":
            rows[task] = 0
        elif kind == "copy":
            rows[task] = rows[0]
        elif kind == "opposed":
            rows[task] = -rows[0]
        rows[task] *= 10.0 ** draw(st.integers(-6, 6))
    return rows


def losses_of(tasks: int) -> Tensor:
    return torch.linspace(0.5, 1.5, tasks, dtype=torch.float64)


def matrix(balancer: Balancer, rows: Matrix, step: int = 0) -> Matrix:
    balancer.step = step
    gram = torch.from_numpy(rows @ rows.T).unsqueeze(0)
    found: Matrix = balancer.transform(gram, losses_of(len(rows)))[0].numpy()
    return found


def make(method: type[BalancerConfig], tasks: int) -> Balancer:
    return BALANCERS[method](configured(method), NAMES[:tasks], 1)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
@settings(max_examples=60, deadline=None)
@given(rows=gradients())
def test_no_gradients_make_a_nan_and_directions_stay_bounded(method: type[BalancerConfig], rows: Matrix) -> None:
    balancer = make(method, len(rows))
    for step in range(3):
        found = matrix(balancer, rows if step != 1 else 0 * rows, step)
        assert np.isfinite(found).all()
        balancer.after(losses_of(len(rows)) * 0.9)
        for value in balancer.state_dict().values():
            assert torch.isfinite(value).all()
    combined = found.sum(axis=0) @ rows
    longest = np.linalg.norm(rows, axis=1).max()
    if name_of(method) not in {
        "gradvac",
        "famo",
        "gradnorm",
    }:  # these weigh by what gradients do not tell, or by their past
        assert np.linalg.norm(combined) <= 1.01 * len(rows) ** 1.5 * longest


@pytest.mark.parametrize("method", METHODS, ids=name_of)
@settings(max_examples=20, deadline=None)
@given(row=arrays(np.float64, 3, elements=st.floats(0.1, 1)))
def test_one_task_keeps_its_gradient(method: type[BalancerConfig], row: Matrix) -> None:
    np.testing.assert_allclose(matrix(make(method, 1), row[None]), [[1.0]], rtol=1e-9)


@pytest.mark.parametrize("method", [m for m in METHODS if name_of(m) not in RANDOM], ids=name_of)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), tasks=st.integers(2, 6))
def test_the_order_of_tasks_does_not_matter(method: type[BalancerConfig], seed: int, tasks: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(tasks, 8)) * 10.0 ** generator.uniform(-1, 1, (tasks, 1))
    order = generator.permutation(tasks)
    balancer = make(method, tasks)
    shuffled = BALANCERS[method](configured(method), [NAMES[i] for i in order], 1)
    for _ in range(2):
        gram = rows @ rows.T
        one = balancer.transform(torch.from_numpy(gram).unsqueeze(0), losses_of(tasks))[0].sum(dim=0).numpy() @ rows
        moved = torch.from_numpy(gram[np.ix_(order, order)]).unsqueeze(0)
        other = shuffled.transform(moved, losses_of(tasks)[torch.from_numpy(order)])[0].sum(dim=0).numpy() @ rows[order]
        np.testing.assert_allclose(other, one, atol=1e-6 * np.linalg.norm(rows, axis=1).max())
        rows = rows + generator.normal(size=rows.shape)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_sixteen_tasks(method: type[BalancerConfig]) -> None:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(16, 10)) * 10.0 ** generator.uniform(-3, 3, (16, 1))  # they depend on each other
    assert np.isfinite(matrix(make(method, 16), rows)).all()


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_state_round_trip_and_determinism(method: type[BalancerConfig]) -> None:
    generator = np.random.default_rng(2)
    one, other, elsewhere = make(method, 5), make(method, 5), make(method, 5)
    for step in range(6):
        rows = generator.normal(size=(5, 4))
        if step == 3:
            other.load_state_dict(one.state_dict())
        found = matrix(one, rows, step)
        assert np.array_equal(matrix(elsewhere, rows, step), found)
        if step >= 3:
            assert np.array_equal(matrix(other, rows, step), found)
        for balancer in (one, elsewhere, other) if step >= 3 else (one, elsewhere):
            balancer.after(losses_of(5) * torch.linspace(0.7, 0.9, 5))


@settings(max_examples=150, deadline=None)
@given(rows=gradients(least=2))
def test_surgery(rows: Matrix) -> None:
    found = matrix(make(SurgeryConfig, len(rows)), rows)
    assert np.array_equal(found[0], np.eye(len(rows))[0]), "the target keeps its gradient"
    inner = rows @ rows[0]
    after = (found @ rows) @ rows[0]
    size = np.linalg.norm(rows, axis=1) * np.linalg.norm(rows[0])
    assert (after >= -1e-9 * size).all(), "no auxiliary points against the target"
    for task in np.flatnonzero(inner >= 0):
        assert np.array_equal(found[task], np.eye(len(rows))[task]), "what does not conflict is left alone"


@settings(max_examples=100, deadline=None)
@given(rows=gradients(least=2))
def test_pcgrad_leaves_gradients_alone_that_do_not_conflict(rows: Matrix) -> None:
    np.testing.assert_array_equal(matrix(PCGrad(PCGradConfig(), NAMES[: len(rows)], 1), abs(rows)), np.eye(len(rows)))


@settings(max_examples=100, deadline=None)
@given(rows=gradients(least=2), strategy=st.sampled_from(["shrink", "enlarge", "both"]))
def test_metabalance(rows: Matrix, strategy: str) -> None:
    tasks, size = len(rows), np.linalg.norm(rows, axis=1)

    def norms_after(relax: float) -> Matrix:
        config = MetaBalanceConfig(target="task0", relax=relax, beta=0, strategy=strategy)
        return np.linalg.norm(matrix(MetaBalance(config, NAMES[:tasks], 1), rows) @ rows, axis=1)

    np.testing.assert_allclose(norms_after(0), size, rtol=1e-12)
    wanted = {"both": size[0], "shrink": np.minimum(size[0], size), "enlarge": np.maximum(size[0], size)}[strategy]
    balanced = np.where((size > 0) & (size[0] > 0), wanted, size)
    np.testing.assert_allclose(norms_after(1), balanced, rtol=1e-9)


def test_a_task_without_a_gradient_keeps_its_moving_norm() -> None:
    balancer = make(MetaBalanceConfig, 2)
    steps = [(4.0, 1.0), (4.0, 1.0), (4.0, 0.0), (4.0, 0.0), (4.0, 1.0)]
    found = [matrix(balancer, np.diag(sizes), step) for step, sizes in enumerate(steps)]
    for step in (0, 1, 4):  # a norm of 1 is to become 4, at 0.7 of the way: 0.7 * 4 + 0.3
        np.testing.assert_allclose(np.diag(found[step]), [1, 3.1])
    for step in (2, 3):
        np.testing.assert_allclose(found[step][0], [1, 0])


def test_a_task_that_appears_late_is_not_enlarged_for_it() -> None:
    balancer = MetaBalance(MetaBalanceConfig(target="task0", relax=1, beta=0.9), NAMES[:2], 1)
    for step in range(20):
        matrix(balancer, np.diag([3.0, 0.0]), step)
    np.testing.assert_allclose(np.diag(matrix(balancer, np.diag([3.0, 6.0]), 20)), [1, 0.5])
