"""Products of probabilities on logits: against double precision, at any logit, and as a part of tasks and models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dlrm_mtl.tasks.check import starting_logits
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.products import TaskProducts, product_logit, product_mistake
from tests.models.inputs import inputs

ESMM = [
    {"name": "click"},
    {"name": "after", "label": "buy", "only_where": "click", "weight": 0},
    {"name": "buy", "product_of": ["click", "after"]},
]


def tasks(contents: list[dict[str, Any]]) -> list[TaskConfig]:
    return [TaskConfig.model_validate(content) for content in contents]


@settings(max_examples=200, deadline=None)
@given(st.floats(-30, 30), st.floats(-30, 30), st.sampled_from([0.0, 1.0]))
def test_losses_and_gradients_as_in_double_precision(a: float, b: float, label: float) -> None:
    """The textbook formula in double precision, where 1 - p is taken from the other factors' odds without loss."""
    leaves = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (a, b)]
    loss = F.binary_cross_entropy_with_logits(product_logit(*leaves), torch.tensor(label))
    loss.backward()
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    p, q = (torch.sigmoid(x) for x in exact)
    not_product = torch.sigmoid(-exact[0]) + p * torch.sigmoid(-exact[1])  # 1 - p q, nothing cancels
    wanted = -(torch.log(p * q) if label else torch.log(not_product))
    wanted.backward()
    torch.testing.assert_close(
        loss.double(), wanted, rtol=1e-6, atol=4e-6
    )  # PyTorch's own cross-entropy is off by that
    for leaf, reference in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=5e-5, atol=2e-7)


def test_gradients_by_differences() -> None:
    a = torch.randn(5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: F.softplus(-product_logit(x, y)), (a, b))


@pytest.mark.parametrize("a", [-3e38, -1e4, 0.0, 1e4, 3e38])
@pytest.mark.parametrize("b", [-1e4, 0.0, 1e4])
def test_finite_at_any_logit(a: float, b: float) -> None:
    leaves = [torch.tensor(x, requires_grad=True) for x in (a, b)]
    loss = F.softplus(product_logit(*leaves))
    loss.backward()
    assert not loss.isnan()
    assert all(0.0 <= float(leaf.grad) <= 1.0 for leaf in leaves)


def test_chains() -> None:
    products = TaskProducts(
        tasks(
            [
                {"name": "all", "product_of": ["a", "b", "c"]},
                *({"name": n} for n in "abc"),
                {"name": "two", "product_of": ["a", "c"]},
            ]
        )
    )
    assert products.own == [1, 2, 3]
    own = torch.randn(7, 3)
    logits = products(own)
    assert torch.equal(logits[:, 1:4], own)
    p = torch.sigmoid(own.double())
    torch.testing.assert_close(torch.sigmoid(logits[:, 0]).double(), p.prod(dim=1), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(torch.sigmoid(logits[:, 4]).double(), p[:, 0] * p[:, 2], rtol=1e-5, atol=1e-8)
    assert torch.equal(TaskProducts(tasks([{"name": n} for n in "abc"]))(own), own)
    assert products(own[:0]).shape == (0, 5)


def test_conditional_tasks_start_from_the_ratio_of_rates() -> None:
    spec = inputs().spec
    labels = [label.model_copy(update={"mean": mean}) for label, mean in zip(spec.labels, (0.5, 0.1), strict=True)]
    click, after, _ = starting_logits(tasks(ESMM), spec.model_copy(update={"labels": labels}))
    assert click == pytest.approx(0.0)
    assert after == pytest.approx(math.log(0.2 / 0.8))


@pytest.mark.parametrize(
    ("product", "number", "reason"),
    [
        (["click", "aftr"], 2, "there is no other task 'aftr'; there are: click, after, score"),
        (["click", "buy"], 2, "there is no other task 'buy'; there are: click, after, score"),
        (["click"], 2, "['click'] does not name two or more different tasks; name each factor once"),
        (["click", "click"], 2, "['click', 'click'] does not name two"),
        (["click", "score"], 2, "'score' has mean_squared_error loss and so no probability; name a binary task"),
    ],
)
def test_mistakes(product: list[str], number: int, reason: str) -> None:
    score = {"name": "score", "loss": "mean_squared_error"}
    found = product_mistake(tasks([*ESMM[:2], {"name": "buy", "product_of": product}, score]))
    assert found is not None
    assert found[0] == number
    assert found[1].startswith(reason)
    assert product_mistake(tasks(ESMM)) is None


def test_a_product_of_products_is_a_mistake() -> None:
    nested = [*ESMM, {"name": "more", "product_of": ["buy", "click"]}]
    assert product_mistake(tasks(nested)) == (3, "'buy' is a product itself; name its factors instead")
    real = [*ESMM[:2], {"name": "buy", "product_of": ["click", "after"], "loss": "huber"}]
    assert product_mistake(tasks(real)) == (2, "a product of probabilities needs a loss of binary labels, not huber")
