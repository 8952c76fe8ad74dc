"""The update rules of tables: against PyTorch's optimizers, their papers, and the native kernels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlrm_mtl.core.registry import registry
from dlrm_mtl.embeddings.kernels import cpu, reference
from dlrm_mtl.embeddings.kernels.layout import KINDS, RowGradients, TableGroup, Update
from dlrm_mtl.embeddings.rules import (
    FTRL,
    SGD,
    ClippyRowWiseAdagrad,
    RowWiseAdagrad,
    TableAdagrad,
    TableAdam,
    TableRule,
    TouchedRows,
)

ROWS, DIM, STEPS = 6, 8, 12


def train(rule: TableRule, gradients: list[Tensor], weights: Tensor, lr: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Take steps in which every row is touched."""
    states = {
        spec.name: torch.full((ROWS,) if spec.per == "row" else (ROWS, DIM), spec.initial) for spec in rule.states
    }
    for step, gradient in enumerate(gradients, 1):
        touched = TouchedRows(weights, gradient, gradient.square().mean(dim=1), states)
        factors = torch.ones(ROWS)
        if rule.clips:
            factors = rule.largest_factors(touched, lr)
            factors = factors if getattr(rule, "scope", "") == "row" else factors.amin().expand(ROWS)
        rule.update(touched, lr, step, factors)
        weights, states = touched.weights, touched.states
    return weights, states


@pytest.mark.parametrize(
    ("rule", "stock"),
    [
        (SGD(learning_rate=0.3), lambda p: torch.optim.SGD([p], lr=0.3)),
        (TableAdagrad(learning_rate=0.3), lambda p: torch.optim.Adagrad([p], lr=0.3, eps=1e-10)),
        (
            TableAdagrad(learning_rate=0.3, initial_accumulator_value=0.1),
            lambda p: torch.optim.Adagrad([p], lr=0.3, initial_accumulator_value=0.1),
        ),
        (TableAdam(learning_rate=0.1), lambda p: torch.optim.Adam([p], lr=0.1)),
        (TableAdam(learning_rate=0.1, betas=(0.5, 0.9)), lambda p: torch.optim.Adam([p], lr=0.1, betas=(0.5, 0.9))),
    ],
    ids=["sgd", "adagrad", "adagrad from .1", "adam", "adam with other betas"],
)
def test_with_every_row_touched_a_rule_is_pytorchs(
    rule: TableRule, stock: Callable[[Tensor], torch.optim.Optimizer]
) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(ROWS, DIM, generator=generator)
    gradients = [torch.randn(ROWS, DIM, generator=generator) for _ in range(STEPS)]
    weights, _ = train(rule, gradients, start, rule.learning_rate)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = stock(parameter)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weights, parameter.data, rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    gradients=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=8),
    start=st.floats(-1, 1, width=32),
    alpha=st.sampled_from([0.05, 0.5]),
    l1=st.sampled_from([0.0, 0.1, 1.0]),
    l2=st.sampled_from([0.0, 0.5]),
)
def test_ftrl_is_the_paper_number_by_number(
    gradients: list[float], start: float, alpha: float, l1: float, l2: float
) -> None:
    """Algorithm 1 of McMahan et al., in double precision; there a step begins with w of the z and n so far."""
    weight, z, n = start, 0.0, 0.0
    for g in gradients:
        if g == 0:
            continue
        sigma = ((n + g * g) ** 0.5 - n**0.5) / alpha
        z, n = z + g - sigma * weight, n + g * g
        sign = 1.0 if z > 0 else -1.0
        weight = 0.0 if abs(z) <= l1 else -(z - sign * l1) / ((1.0 + n**0.5) / alpha + l2)
    rule = FTRL(learning_rate=alpha, l1=l1, l2=l2)
    whole = [torch.full((ROWS, DIM), g) for g in gradients]
    weights, states = train(rule, whole, torch.full((ROWS, DIM), start), alpha)
    near_the_edge = abs(abs(z) - l1) < 1e-5
    assert near_the_edge or weights[0, 0].item() == pytest.approx(weight, rel=1e-3, abs=1e-5)
    assert states["squares"][2, 3].item() == pytest.approx(n, rel=1e-5, abs=1e-6)


NATIVE: list[TableRule] = [
    SGD(learning_rate=0.3),
    RowWiseAdagrad(learning_rate=0.3, initial_accumulator_value=0.01),
    ClippyRowWiseAdagrad(learning_rate=0.9, lambda_rel=0.1, lambda_abs=1e-3),
    ClippyRowWiseAdagrad(learning_rate=0.9, accumulator="delayed"),
    ClippyRowWiseAdagrad(learning_rate=0.9, lambda_rel=0.1, lambda_abs=1e-3, scope="row"),
]


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["portable", "native"])
@pytest.mark.parametrize("rule", NATIVE, ids=lambda rule: f"{rule.name} {getattr(rule, 'scope', '')}")
def test_kernels_do_what_the_rule_says(rule: TableRule, kernels: Any) -> None:
    if kernels is cpu and cpu.native_status():
        pytest.skip(str(cpu.native_status()))
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(ROWS, DIM, generator=generator) * 0.1
    gradients = [torch.randn(ROWS, DIM, generator=generator) for _ in range(STEPS)]
    for gradient in gradients:
        gradient[1, 2] = 0.0
    wanted, states = train(rule, gradients, start, rule.learning_rate)
    group = TableGroup(
        weights=start.flatten().clone(),
        weight_offsets=torch.tensor([0]),
        row_offsets=torch.tensor([0, ROWS]),
        dims=torch.tensor([DIM]),
        feature_tables=torch.tensor([0]),
    )
    update = rule.native()
    assert update is not None
    state = torch.full((ROWS,), rule.states[0].initial) if rule.states else torch.zeros(0)
    for gradient in gradients:
        ids = torch.arange(ROWS)
        offsets = torch.arange(ROWS + 1)
        collected = kernels.collect(group, ids, offsets, ROWS, gradient)
        assert isinstance(collected, RowGradients)
        means = collected.square_sums / DIM
        factor = kernels.factors(group, state, collected, means, update, rule.learning_rate)
        kernels.apply(group, state, collected, means, factor, update, rule.learning_rate)
    torch.testing.assert_close(group.table(0), wanted, rtol=1e-5, atol=1e-7)
    if rule.states:
        torch.testing.assert_close(state, states["accumulator"], rtol=1e-5, atol=0.0)


def test_native_fields_are_those_of_update() -> None:
    """One list: the dataclass in Python, the structure that ctypes passes, the structure in C++."""
    header = Path(cpu.__file__).parent / "csrc" / "layout.h"
    body = re.search(r"struct Update \{(.*?)\n\};", header.read_text(), re.DOTALL)
    assert body is not None
    fields = re.findall(r"^\s*(int64_t|float) (\w+);", body[1], re.MULTILINE)
    of_ctypes = [("int64_t" if kind.__name__ == "c_long" else "float", name) for name, kind in cpu._Update._fields_]
    assert fields == of_ctypes
    kinds = dict(re.findall(r"k(\w+) = (\d+)", body[1]))
    assert {name.lower(): int(number) for name, number in kinds.items()} == {name: n for n, name in enumerate(KINDS)}
    assert Update().kind in KINDS


def test_every_rule_is_registered_with_its_state() -> None:
    names = registry("table_optimizer").names()
    assert names[:4] == ["clippy_rowwise_adagrad", "rowwise_adagrad", "rowwise_adam", "sgd"]
    assert {"adam", "adagrad", "ftrl"} <= set(names)
    for entry in registry("table_optimizer"):
        rule = entry.part()
        assert len({spec.name for spec in rule.states}) == len(rule.states)
