"""The losses of single rows against formulas written out, and their gradients against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from dlrm_mtl.tasks.binary import binary_cross_entropy, focal
from dlrm_mtl.tasks.ranking import bpr, bpr_probability, in_batch_softmax, softmax_cross_entropy
from dlrm_mtl.tasks.regression import absolute_error, huber, squared_error

EXTREME = [-1e4, -80.0, -1.0, 0.0, 1.0, 80.0, 1e4]


def data(rows: int = 40) -> tuple[Tensor, Tensor]:
    """Logits (double, with gradient) and binary labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), (torch.rand(rows, generator=generator) < 0.4).double()


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("positive_weight", [1.0, 3.5])
def test_binary_cross_entropy(positive_weight: float) -> None:
    logits, labels = data()
    expected = [
        -(positive_weight * math.log(probability(z)) if y else math.log(1 - probability(z)))
        for z, y in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    weight = torch.tensor(positive_weight).double()
    torch.testing.assert_close(binary_cross_entropy(logits, labels, weight).tolist(), expected)
    assert gradcheck(lambda z: binary_cross_entropy(z, labels, weight), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal(gamma: float, alpha: float | None) -> None:
    logits, labels = data()
    expected = []
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        p = probability(z) if y else 1 - probability(z)
        share = 1.0 if alpha is None else alpha if y else 1 - alpha
        expected.append(-share * (1 - p) ** gamma * math.log(p))
    torch.testing.assert_close(focal(logits, labels, gamma, alpha).tolist(), expected)
    assert gradcheck(lambda z: focal(z, labels, gamma, alpha), logits)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, labels = data()
    torch.testing.assert_close(focal(logits, labels, gamma=0.0), binary_cross_entropy(logits, labels))


def test_a_detached_factor_gives_the_same_value_and_the_gradient_of_a_weighted_cross_entropy() -> None:
    logits, labels = data()
    true = focal(logits, labels, gamma=2.0)
    detached = focal(logits, labels, gamma=2.0, detach_factor=True)
    torch.testing.assert_close(detached, true)
    observed = torch.where(labels == 1, torch.sigmoid(logits), 1 - torch.sigmoid(logits)).detach()
    (cross_entropy,) = torch.autograd.grad(binary_cross_entropy(logits, labels).sum(), logits)
    (gradient,) = torch.autograd.grad(detached.sum(), logits)
    torch.testing.assert_close(gradient, (1 - observed) ** 2 * cross_entropy)
    (whole,) = torch.autograd.grad(true.sum(), logits)
    assert not torch.allclose(whole, gradient)


@pytest.mark.parametrize("loss", [binary_cross_entropy, focal, lambda z, y: focal(z, y, 0.5, 0.3)])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_extreme_logits_stay_finite(loss: Callable[[Tensor, Tensor], Tensor], label: float) -> None:
    logits = torch.tensor(EXTREME, requires_grad=True)
    losses = loss(logits, torch.full_like(logits, label))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()
    assert losses[0 if label else -1] > 1000


def test_regression_losses() -> None:
    predictions, _ = data()
    labels = 2 * torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = [z - y for z, y in zip(predictions.tolist(), labels.tolist(), strict=True)]
    torch.testing.assert_close(squared_error(predictions, labels).tolist(), [e * e for e in errors])
    torch.testing.assert_close(absolute_error(predictions, labels).tolist(), [abs(e) for e in errors])
    for delta in (0.5, 2.0):
        expected = [e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2) for e in errors]
        torch.testing.assert_close(huber(predictions, labels, delta).tolist(), expected)
        assert gradcheck(lambda z, delta=delta: huber(z, labels, delta), predictions)
    assert gradcheck(lambda z: squared_error(z, labels), predictions)
    assert gradcheck(lambda z: absolute_error(z, labels), predictions)


def test_pairwise_losses() -> None:
    generator = torch.Generator().manual_seed(2)
    positive = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    negative = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    for i in range(6):
        for j in range(3):
            right = probability(positive[i].item() - negative[i, j].item())
            assert bpr(positive, negative)[i, j].item() == pytest.approx(-math.log(right))
            assert bpr_probability(positive, negative)[i, j].item() == pytest.approx(1 - right)
    torch.testing.assert_close(bpr(positive, negative[:, 0]), bpr(positive, negative)[:, 0])
    assert gradcheck(bpr, (positive, negative))
    assert gradcheck(bpr_probability, (positive, negative))
    assert torch.isfinite(bpr(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))).all()


def test_softmax_against_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    first = torch.zeros(5, dtype=torch.int64)
    expected = F.cross_entropy(scores, first, reduction="none")
    torch.testing.assert_close(softmax_cross_entropy(scores[:, 0], scores[:, 1:]), expected)
    log_sampling = torch.rand(5, 4, generator=generator, dtype=torch.float64).log()
    corrected = softmax_cross_entropy(scores[:, 0], scores[:, 1:], log_sampling)
    torch.testing.assert_close(corrected, F.cross_entropy(scores - log_sampling, first, reduction="none"))
    assert gradcheck(lambda s: softmax_cross_entropy(s[:, 0], s[:, 1:]), scores)


def test_in_batch_softmax_leaves_the_same_item_out() -> None:
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64).requires_grad_()
    plain = F.cross_entropy(scores, torch.arange(4), reduction="none")
    torch.testing.assert_close(in_batch_softmax(scores), plain)
    torch.testing.assert_close(in_batch_softmax(scores, torch.tensor([3, 5, 7, 9])), plain)
    items = torch.tensor([3, 5, 3, 9])
    losses = in_batch_softmax(scores, items)
    row = scores[0, [0, 1, 3]]  # without row 2, which has row 0's item
    assert losses[0].item() == pytest.approx((row.exp().sum().log() - row[0]).item())
    torch.testing.assert_close(losses[[1, 3]], plain[[1, 3]])
    often = torch.rand(4, generator=torch.Generator().manual_seed(5), dtype=torch.float64).log()
    expected = F.cross_entropy(scores - often, torch.arange(4), reduction="none")
    torch.testing.assert_close(in_batch_softmax(scores, log_sampling=often), expected)
    assert gradcheck(lambda s: in_batch_softmax(s, items), scores)
