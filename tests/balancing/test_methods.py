"""Every method against its paper's statement on vectors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dlrm_mtl.balancing.aligned_mtl import AlignedMTL, AlignedMTLConfig
from dlrm_mtl.balancing.base import Balancer, orders
from dlrm_mtl.balancing.cagrad import CAGrad, CAGradConfig
from dlrm_mtl.balancing.famo import FAMO, FAMOConfig
from dlrm_mtl.balancing.gradnorm import GradNorm, GradNormConfig
from dlrm_mtl.balancing.gradvac import GradVac, GradVacConfig
from dlrm_mtl.balancing.imtl import IMTLG, IMTLGConfig
from dlrm_mtl.balancing.metabalance import MetaBalance, MetaBalanceConfig
from dlrm_mtl.balancing.mgda import MGDA, MGDAConfig
from dlrm_mtl.balancing.nash_mtl import NashMTL, NashMTLConfig
from dlrm_mtl.balancing.pcgrad import PCGrad, PCGradConfig, project
from dlrm_mtl.balancing.surgery import Similarity, SimilarityConfig, Surgery, SurgeryConfig
from tests.balancing import literal

Vectors = NDArray[np.float64]
TASKS = ["a", "b", "c", "d", "e"]


def draw(seed: int, tasks: int = 4, width: int = 12, shift: float = 0.0) -> list[Vectors]:
    generator = np.random.default_rng(seed)
    scales = 10.0 ** generator.uniform(-2, 2, tasks)
    return [scale * (generator.normal(size=width) + shift) for scale in scales]


def adjusted(balancer: Balancer, gradients: list[Vectors], losses: list[float] | None = None, step: int = 0) -> Vectors:
    """The adjusted gradients [T, n]; beside the group asked about there is another, which must not matter."""
    gram = torch.from_numpy(literal.gram_of_vectors(gradients))
    other = torch.eye(len(gradients), dtype=torch.float64)
    balancer.step = step
    values = torch.tensor(losses or [1.0] * len(gradients), dtype=torch.float64)
    return balancer.transform(torch.stack([other, gram]), values)[1].numpy() @ np.stack(gradients)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strategy", ["shrink", "enlarge", "both"])
def test_metabalance(seed: int, strategy: str) -> None:
    config = MetaBalanceConfig(target="b", relax=0.6, beta=0.8, strategy=strategy)
    balancer = MetaBalance(config, TASKS[:4], 2)
    steps = [draw(100 * seed + number) for number in range(5)]
    for number in range(5):
        wanted = literal.metabalance(steps[: number + 1], 1, 0.6, 0.8, strategy)
        np.testing.assert_allclose(adjusted(balancer, steps[number]), np.stack(wanted), rtol=1e-10)


@pytest.mark.parametrize("seed", range(8))
def test_surgery_and_similarity(seed: int) -> None:
    gradients = draw(seed)
    found = adjusted(Surgery(SurgeryConfig(target="c"), TASKS[:4], 2), gradients)
    np.testing.assert_allclose(found, np.stack(literal.surgery(gradients, 2)), rtol=1e-9, atol=1e-12)
    for weighted in [False, True]:
        found = adjusted(Similarity(SimilarityConfig(target="c", weighted=weighted), TASKS[:4], 2), gradients)
        np.testing.assert_allclose(found, np.stack(literal.similarity(gradients, 2, weighted)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_pcgrad(seed: int) -> None:
    gradients = draw(seed, tasks=5, width=4)
    wanted = literal.pcgrad(gradients, orders(7, seed, 5).tolist())
    scale = max(np.linalg.norm(g) for g in gradients)
    for reduction, divisor in [("sum", 1), ("mean", 5)]:
        found = adjusted(PCGrad(PCGradConfig(seed=7, reduction=reduction), TASKS, 2), gradients, step=seed)
        np.testing.assert_allclose(found.sum(axis=0), wanted / divisor, atol=1e-12 * scale)


def test_pcgrad_does_not_care_for_the_order_of_tasks_on_average_over_all_orders() -> None:
    gradients = draw(3, tasks=3, width=3, shift=-0.5)
    every = [list(itertools.permutations([j for j in range(3) if j != i])) for i in range(3)]

    def average(vectors: list[Vectors]) -> Vectors:
        gram = torch.from_numpy(literal.gram_of_vectors(vectors)).unsqueeze(0)
        found = [project(gram, torch.tensor(order))[0].sum(dim=0).numpy() for order in itertools.product(*every)]
        return np.mean(found, axis=0) @ np.stack(vectors)

    np.testing.assert_allclose(average(gradients), average([gradients[i] for i in (2, 0, 1)]), rtol=1e-9)


def test_orders_are_permutations_drawn_evenly_and_a_function_of_seed_and_step() -> None:
    drawn = [orders(1, step, 3) for step in range(600)]
    for order in drawn[:20]:
        assert [sorted(row) for row in order.tolist()] == [[1, 2], [0, 2], [0, 1]]
    first = torch.stack([order[:, 0] for order in drawn]).double().std(dim=0)
    np.testing.assert_allclose(first.numpy(), [0.5, 1.0, 0.5], atol=0.02)
    assert torch.equal(orders(5, 9, 16), orders(5, 9, 16))
    assert not torch.equal(orders(5, 9, 16), orders(5, 10, 16))
    assert not torch.equal(orders(5, 9, 16), orders(6, 9, 16))
    assert orders(0, 0, 1).shape == (1, 0)


def test_gradvac() -> None:
    balancer = GradVac(GradVacConfig(beta=0.2, seed=3), TASKS[:4], 2)
    average: dict[tuple[int, int], float] = {}
    for step in range(8):
        gradients = draw(step, width=5, shift=0.3)
        wanted = literal.gradvac(gradients, orders(3, step, 4).tolist(), average, 0.2)
        found = adjusted(balancer, gradients, step=step).sum(axis=0)
        np.testing.assert_allclose(found, wanted, atol=1e-9 * max(np.linalg.norm(g) for g in gradients))
    for (i, j), value in average.items():
        assert balancer.moving_cosines[1, i, j].item() == pytest.approx(value, abs=1e-12)
    assert max(average.values()) > 0.1, "the averages play a part"


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_mgda(seed: int, tasks: int) -> None:
    gradients = draw(seed, tasks, shift=0.4 * (seed % 3))
    gradients = [g / np.linalg.norm(g) * (1 + i) for i, g in enumerate(gradients)]  # SciPy needs a fair scale
    wanted = literal.min_norm(gradients)
    found = adjusted(MGDA(MGDAConfig(reduction="mean"), TASKS[:tasks], 2), gradients).sum(axis=0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.linalg.norm(found) <= np.linalg.norm(wanted) + 1e-12
    for g in gradients:  # what characterises the shortest vector
        assert g @ found >= found @ found * (1 - 1e-10)
    total = adjusted(MGDA(MGDAConfig(), TASKS[:tasks], 2), gradients).sum(axis=0)
    np.testing.assert_allclose(total, tasks * found, rtol=1e-12)


def test_mgda_normalised() -> None:
    gradients, losses = draw(2), [0.5, 2.0, 0.1, 3.0]
    sizes = [float(np.linalg.norm(g)) for g in gradients]
    divisors = {"norm": sizes, "loss": losses, "loss+": [a * b for a, b in zip(sizes, losses, strict=True)]}
    for normalization, divisor in divisors.items():
        config = MGDAConfig(reduction="mean", normalization=normalization)
        found = adjusted(MGDA(config, TASKS[:4], 2), gradients, losses)
        weights = [f @ g / (g @ g) for f, g in zip(found, gradients, strict=True)]
        assert sum(weights) == pytest.approx(1)
        shortest = sum(w * g / n for w, g, n in zip(weights, gradients, divisor, strict=True))
        for g, n in zip(gradients, divisor, strict=True):
            assert g @ shortest / n >= shortest @ shortest * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad(seed: int, c: float) -> None:
    gradients = draw(seed, 3 + seed % 3, width=6, shift=0.5 * (seed % 2))
    gradients = [g / np.linalg.norm(g) * (1 + i) for i, g in enumerate(gradients)]
    tasks = len(gradients)
    mean = sum(gradients) / tasks
    config = CAGradConfig(c=c, rescale="none", reduction="mean")
    direction = adjusted(CAGrad(config, TASKS[:tasks], 2), gradients).sum(axis=0)
    radius = c * np.linalg.norm(mean)
    assert np.linalg.norm(direction - mean) <= radius * (1 + 1e-9)
    wanted = literal.cagrad_objective(gradients, c)
    assert min(g @ direction for g in gradients) >= wanted - 1e-7
    for rescale, divisor in [("square", 1 + c * c), ("linear", 1 + c)]:
        found = adjusted(CAGrad(CAGradConfig(c=c, rescale=rescale), TASKS[:tasks], 2), gradients).sum(axis=0)
        np.testing.assert_allclose(found, direction * tasks / divisor, rtol=1e-10)


def test_cagrad_with_tasks_that_oppose_each_other_entirely() -> None:
    generator = np.random.default_rng(0)
    plane = generator.normal(size=(3, 2))
    plane[2] = -(plane[0] + plane[1]) / 2  # 0 is a weighted mean
    gradients = [np.append(row, 0.0) for row in plane]
    config = CAGradConfig(c=0.99, rescale="none", reduction="mean")
    direction = adjusted(CAGrad(config, TASKS[:3], 2), gradients).sum(axis=0)
    mean = sum(gradients) / 3
    assert np.linalg.norm(direction - mean) <= 0.99 * np.linalg.norm(mean) * (1 + 1e-9)
    best = literal.cagrad_objective(gradients, 0.99)
    assert min(g @ direction for g in gradients) >= best - 1e-4


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_imtl_g(seed: int, tasks: int) -> None:
    gradients = draw(seed, tasks, shift=0.5)
    wanted = literal.imtl_g(gradients)
    found = adjusted(IMTLG(IMTLGConfig(reduction="mean"), TASKS[:tasks], 2), gradients).sum(axis=0)
    projections = [found @ g / np.linalg.norm(g) for g in gradients]
    np.testing.assert_allclose(projections, projections[0], rtol=1e-8)
    assert projections[0] > 0
    if wanted @ gradients[0] > 0:  # not so for one of these draws, whose closed form points uphill for every task
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9 * np.linalg.norm(wanted))
    else:
        cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
        assert cosine == pytest.approx(-1)


def test_imtl_g_where_the_closed_form_has_no_answer() -> None:
    balancer = IMTLG(IMTLGConfig(reduction="mean"), TASKS[:2], 2)
    g = np.array([1.0, 2.0])
    np.testing.assert_allclose(adjusted(balancer, [g, -g]).sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(adjusted(balancer, [g, -3 * g]).sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(adjusted(balancer, [g, g]).sum(axis=0), g, rtol=1e-12)
    # One weight is negative and large, because its gradient is short: the paper's sum is negative and d points uphill.
    gradients = [np.array([1.0, 0.1, 0]), np.array([1.0, -0.1, 0]), 1e-3 * np.array([1.0, 0.0, 0.01])]
    upward = literal.imtl_g(gradients)
    assert all(upward @ g < 0 for g in gradients)
    found = adjusted(IMTLG(IMTLGConfig(reduction="mean"), TASKS[:3], 2), gradients).sum(axis=0)
    projections = [found @ g / np.linalg.norm(g) for g in gradients]
    assert min(projections) > 0
    np.testing.assert_allclose(projections, projections[0], rtol=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_aligned_mtl(seed: int) -> None:
    gradients = draw(seed)
    wanted = np.stack(literal.aligned_mtl(gradients))
    found = adjusted(AlignedMTL(AlignedMTLConfig(), TASKS[:4], 2), gradients)
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())
    np.testing.assert_allclose(found @ found.T, np.eye(4) * (found[0] @ found[0]), atol=1e-6 * (found[0] @ found[0]))
    eigenvalues = np.linalg.eigvalsh(literal.gram_of_vectors(gradients))
    for scale, square in [("median", np.median(eigenvalues)), ("mean", eigenvalues.mean())]:
        found = adjusted(AlignedMTL(AlignedMTLConfig(scale=scale), TASKS[:4], 2), gradients)
        if scale == "mean":
            assert found[0] @ found[0] == pytest.approx(square)
        else:  # torch's median of an even number is interpolated here as numpy's is
            assert found[0] @ found[0] == pytest.approx(square, rel=1e-6)


def test_aligned_mtl_of_gradients_that_depend_on_each_other() -> None:
    a, b = np.array([1.0, 0, 0]), np.array([0, 2.0, 0])
    found = adjusted(AlignedMTL(AlignedMTLConfig(), TASKS[:3], 2), [a, b, a + b])
    singular = np.linalg.svd(found, compute_uv=False)
    np.testing.assert_allclose(singular[0], singular[1], rtol=1e-9)
    assert singular[2] < 1e-9


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_nash_mtl(seed: int, tasks: int) -> None:
    gradients = draw(seed, tasks)
    gram = literal.gram_of_vectors(gradients)
    for normalize in [False, True]:
        found = adjusted(NashMTL(NashMTLConfig(normalize=normalize), TASKS[:tasks], 2), gradients)
        weights = np.array([f @ g / (g @ g) for f, g in zip(found, gradients, strict=True)])
        inner = gram / np.linalg.norm(gram) if normalize else gram
        assert (weights > 0).all()
        np.testing.assert_allclose(inner @ weights * weights, 1, rtol=1e-7)
    # d's utilities: no other direction of that norm has a larger product of them
    direction = found.sum(axis=0)
    value = sum(math.log(g @ direction) for g in gradients)
    generator = np.random.default_rng(seed)
    for _ in range(200):
        other = direction + 0.1 * np.linalg.norm(direction) * generator.normal(size=len(direction))
        other *= np.linalg.norm(direction) / np.linalg.norm(other)
        gains = [g @ other for g in gradients]
        assert min(gains) <= 0 or sum(math.log(gain) for gain in gains) <= value + 1e-9


def test_nash_mtl_stays_bounded_where_there_is_no_bargain() -> None:
    g = np.array([1.0, 2.0])
    found = adjusted(NashMTL(NashMTLConfig(), TASKS[:2], 2), [g, -g])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-6)


def test_gradnorm() -> None:
    balancer = GradNorm(GradNormConfig(alpha=1.2, learning_rate=0.02), TASKS[:3], 2)
    weights, adams, first = [1.0] * 3, [literal.Adam(0.02) for _ in range(3)], None
    generator = np.random.default_rng(0)
    for step in range(30):
        gradients = [scale * generator.normal(size=6) for scale in (1.0, 3.0, 0.4)]
        losses = [(0.5 + 0.5 * rate**step) for rate in (0.99, 0.9, 0.95)]
        first = first or losses
        found = adjusted(balancer, gradients, losses)
        np.testing.assert_allclose(found, [w * g for w, g in zip(weights, gradients, strict=True)], rtol=1e-9)
        sizes = [float(np.linalg.norm(g)) for g in gradients]
        mean = sum(w * n for w, n in zip(weights, sizes, strict=True)) / 3
        ratios = [loss / start for loss, start in zip(losses, first, strict=True)]
        wanted = [mean * (ratio / (sum(ratios) / 3)) ** 1.2 for ratio in ratios]
        slopes = [n * (1 if w * n > aim else -1) for w, n, aim in zip(weights, sizes, wanted, strict=True)]
        weights = [adam(w, slope) for adam, w, slope in zip(adams, weights, slopes, strict=True)]
        weights = [3 * w / sum(weights) for w in weights]
    assert weights[1] < weights[0] < weights[2], "large gradients get small weights"


def test_gradnorm_makes_norms_equal_without_alpha() -> None:
    balancer = GradNorm(GradNormConfig(alpha=0, learning_rate=0.01), TASKS[:3], 2)
    gradients = draw(1, 3)
    gradients = [g / np.linalg.norm(g) * size for g, size in zip(gradients, [1.0, 2.0, 4.0], strict=True)]
    for _ in range(500):
        found = adjusted(balancer, gradients, [0.3, 0.2, 0.1])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(found, axis=1).mean(), rtol=0.1)


def test_famo_against_autograd() -> None:
    balancer = FAMO(FAMOConfig(learning_rate=0.1, weight_decay=0.01, reduction="mean"), TASKS[:3], 2)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    gram = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    for _ in range(20):
        before = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
        after = before * (0.5 + 0.5 * torch.rand(3, generator=generator, dtype=torch.float64))
        theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        z = torch.softmax(logits.detach(), dim=0)
        objective = (z * (before + theta).log()).sum() / (z / before).sum()
        weights = balancer.transform(gram, before).diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(weights[1], torch.autograd.grad(objective, theta)[0])
        assert weights[0].sum().item() == pytest.approx(1)
        balancer.after(after)
        adam.zero_grad()
        torch.softmax(logits, dim=0).backward(before.log() - after.log())
        adam.step()
        torch.testing.assert_close(balancer.logits, logits.detach())


def test_famo_gives_weight_to_the_task_that_falls_behind() -> None:
    balancer = FAMO(FAMOConfig(), TASKS[:2], 1)
    gram = torch.eye(2, dtype=torch.float64).unsqueeze(0)
    for _ in range(10):
        balancer.transform(gram, torch.tensor([1.0, 1.0], dtype=torch.float64))
        balancer.after(torch.tensor([0.5, 0.99], dtype=torch.float64))
    assert balancer.logits[1] > balancer.logits[0]
    state = balancer.logits.clone()
    balancer.after(torch.tensor([0.5, float("nan")], dtype=torch.float64))
    assert torch.equal(balancer.logits, state)
