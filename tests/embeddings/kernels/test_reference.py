"""The plain kernels against loops over dense gradients that autograd found."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlrm_mtl.embeddings.kernels import reference
from dlrm_mtl.embeddings.kernels.layout import NON_FINITE, RowGradients, TableGroup, Update, empty_gradients

RULES = [
    Update(),
    Update(delayed=True, eps=1e-3),
    Update(eps=1e-3, eps_inside=False, lambda_rel=0.1, lambda_abs=1e-3),
    Update(per_row=True),
    Update(kind="adagrad", eps=1e-6),
    Update(kind="sgd"),
]


@dataclass
class Small:
    """Two tables; the first has two features."""

    group: TableGroup
    indices: Tensor
    offsets: Tensor
    bags: int
    bag_weights: Tensor | None
    gradient: Tensor

    def collect(self) -> RowGradients:
        return reference.collect(self.group, self.indices, self.offsets, self.bags, self.gradient, self.bag_weights)


def test_means_divide_sums_and_their_gradients() -> None:
    case = small()
    means = replace(case.group, means=torch.tensor([True, False, True]))
    sizes = case.offsets.diff().view(3, case.bags).clamp(min=1).float()
    sizes[1] = 1.0
    divisors = sizes.T.repeat_interleave(torch.tensor([4, 4, 8]), dim=1)
    sums = reference.lookup(case.group, case.indices, case.offsets, case.bags)
    assert torch.equal(reference.lookup(means, case.indices, case.offsets, case.bags), sums / divisors)
    found = reference.collect(means, case.indices, case.offsets, case.bags, case.gradient)
    wanted = reference.collect(case.group, case.indices, case.offsets, case.bags, case.gradient / divisors)
    assert torch.equal(found.rows, wanted.rows)
    assert torch.equal(found.gradients, wanted.gradients)


def small(weighted: bool = False, size: float = 1.0) -> Small:
    numbers = torch.Generator().manual_seed(3)
    rows, dims = [6, 9], [4, 8]
    group = TableGroup(
        weights=torch.randn(6 * 4 + 9 * 8, generator=numbers),
        weight_offsets=torch.tensor([0, 24]),
        row_offsets=torch.tensor([0, 6, 15]),
        dims=torch.tensor(dims),
        feature_tables=torch.tensor([0, 0, 1]),
    )
    lengths = torch.tensor([2, 0, 3, 1, 1, 4, 0, 2, 5, 3, 1, 2])
    bags = 4
    tables = group.feature_tables.repeat_interleave(lengths.view(3, bags).sum(dim=1)).tolist()
    indices = torch.tensor([int(torch.randint(rows[table], (), generator=numbers)) for table in tables])
    return Small(
        group,
        indices,
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        bags,
        torch.rand(len(indices), generator=numbers) if weighted else None,
        torch.randn(bags, 4 + 4 + 8, generator=numbers) * size,
    )


def dense_lookup(case: Small, tables: list[Tensor]) -> Tensor:
    """One id at a time."""
    columns: list[Tensor] = []
    for feature, table in enumerate(case.group.feature_tables.tolist()):
        bags = []
        for bag in range(case.bags):
            total = torch.zeros(tables[table].shape[1], dtype=tables[table].dtype)
            first, last = case.offsets[feature * case.bags + bag : feature * case.bags + bag + 2].tolist()
            for i in range(first, last):
                row = tables[table][case.indices[i]]
                total = total + (row if case.bag_weights is None else row * case.bag_weights[i].to(row.dtype))
            bags.append(total)
        columns.append(torch.stack(bags))
    return torch.cat(columns, dim=1)


def dense_tables(group: TableGroup) -> list[Tensor]:
    return [group.table(index).double().clone().requires_grad_() for index in range(group.tables)]


def dense_update(weights: Tensor, state: Tensor, grad: Tensor, rule: Update, lr: float) -> tuple[Tensor, Tensor, float]:
    """A whole table in float64, row by row: new weights, new state, the factor."""
    mean_squares = grad.square().mean(dim=1)
    after = state + mean_squares
    direction = torch.zeros_like(grad)
    for row in range(len(weights)):
        for column in range(weights.shape[1]):
            g = float(grad[row, column])
            if g == 0 or rule.kind == "sgd":
                direction[row, column] = g
                continue
            d = float(state[row] if rule.delayed else after[row])
            direction[row, column] = g / ((d + rule.eps) ** 0.5 if rule.eps_inside else d**0.5 + rule.eps)
    factors = torch.ones(len(weights), dtype=weights.dtype)
    if rule.kind == "clippy":
        for row in range(len(weights)):
            for column in range(weights.shape[1]):
                move = lr * abs(float(direction[row, column]))
                allowed = rule.lambda_rel * abs(float(weights[row, column])) + rule.lambda_abs
                if move > allowed:
                    factors[row] = min(float(factors[row]), allowed / move)
        if not rule.per_row:
            factors[:] = factors.min()
    new = weights - lr * factors.unsqueeze(1) * direction
    return new, state if rule.kind == "sgd" else after, 1.0 if rule.per_row else float(factors.min())


@pytest.mark.parametrize("weighted", [False, True])
def test_lookup_is_the_sum_of_each_bag(weighted: bool) -> None:
    case = small(weighted)
    found = reference.lookup(case.group, case.indices, case.offsets, case.bags, case.bag_weights)
    torch.testing.assert_close(found, dense_lookup(case, dense_tables(case.group)).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_three_steps_match_a_dense_loop(rule: Update, weighted: bool) -> None:
    case, lr = small(weighted), 0.5
    states = [torch.full((rows,), 0.1, dtype=torch.float64) for rows in (6, 9)]
    state = torch.full((15,), 0.1)
    tables = dense_tables(case.group)
    clipped = False
    for _ in range(3):
        (dense_lookup(case, tables) * case.gradient).sum().backward()
        collected = case.collect()
        means = torch.cat([collected.part(collected.square_sums, t) / dim for t, dim in enumerate((4, 8))])
        factors = reference.factors(case.group, state, collected, means, rule, lr)
        reference.apply(case.group, state, collected, means, factors, rule, lr)
        for index, table in enumerate(tables):
            assert table.grad is not None
            rows = collected.part(collected.rows, index)
            assert torch.equal(rows, table.grad.abs().sum(dim=1).nonzero().flatten())
            torch.testing.assert_close(
                collected.gradient(case.group, index).double(), table.grad[rows], rtol=1e-5, atol=1e-6
            )
            new, states[index], factor = dense_update(table.detach(), states[index], table.grad, rule, lr)
            clipped |= factor < 1
            torch.testing.assert_close(float(factors[index]), factor, rtol=1e-5, atol=0)
            torch.testing.assert_close(case.group.table(index).double(), new, rtol=1e-5, atol=1e-6)
            tables[index] = new.requires_grad_()
        torch.testing.assert_close(state.double(), torch.cat(states), rtol=1e-5, atol=0)
    assert clipped == (rule.kind == "clippy" and not rule.per_row)


def test_tables_of_one_column_are_updated_as_by_torch_adagrad() -> None:
    rows, lr = 50, 0.1
    weights = torch.randn(rows)
    group = TableGroup(
        weights.clone(), torch.tensor([0]), torch.tensor([0, rows]), torch.tensor([1]), torch.tensor([0])
    )
    parameter = torch.nn.Parameter(weights.clone().unsqueeze(1))
    optimizer = torch.optim.Adagrad([parameter], lr, initial_accumulator_value=0.1, eps=1e-10)
    rule, state = Update(kind="adagrad", eps=1e-10, eps_inside=False), torch.full((rows,), 0.1)
    for _ in range(5):
        ids, gradient = torch.randint(rows, (30,)), torch.randn(30, 1)
        collected = reference.collect(group, ids, torch.arange(31), 30, gradient)
        reference.apply(group, state, collected, collected.square_sums, torch.ones(1), rule, lr)
        (parameter[ids] * gradient).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(group.table(0), parameter.detach(), rtol=1e-6, atol=1e-7)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(-12, 12),
    st.integers(-6, 6),
    st.sampled_from([r for r in RULES if r.kind == "clippy"]),
)
def test_no_coordinate_moves_farther_than_allowed(
    seed: int, gradient_power: int, weight_power: int, rule: Update
) -> None:
    numbers = torch.Generator().manual_seed(seed)
    weights = torch.randn(40, generator=numbers) * 10.0**weight_power
    group = TableGroup(weights.clone(), torch.tensor([0]), torch.tensor([0, 10]), torch.tensor([4]), torch.tensor([0]))
    state = torch.full((10,), 0.1)
    gradient = torch.randn(6, 4, generator=numbers) * 10.0**gradient_power
    collected = reference.collect(group, torch.randint(10, (6,), generator=numbers), torch.arange(7), 6, gradient)
    means = collected.square_sums / 4
    factors = reference.factors(group, state, collected, means, rule, 2.0)
    reference.apply(group, state, collected, means, factors, rule, 2.0)
    allowed = rule.lambda_rel * weights.abs() + rule.lambda_abs
    rounding = 1e-6 * (weights.abs() + allowed)
    assert bool(((group.weights - weights).abs() <= allowed + rounding).all())


def test_unpooled_is_pooled_with_bags_of_one() -> None:
    case = small()
    group = TableGroup(
        case.group.weights[: 6 * 4], torch.tensor([0]), torch.tensor([0, 6]), torch.tensor([4]), torch.tensor([0, 0])
    )
    ids, gradient = torch.tensor([5, 0, 5, 2, 2, 5]), torch.randn(6, 4)
    rows = reference.lookup_unpooled(group, ids, [4, 2])
    assert torch.equal(rows, group.table(0)[ids])
    one = TableGroup(group.weights, group.weight_offsets, group.row_offsets, group.dims, torch.tensor([0]))
    pooled = reference.collect(one, ids, torch.arange(7), 6, gradient)
    unpooled = reference.collect_unpooled(group, ids, [4, 2], gradient)
    assert torch.equal(pooled.rows, unpooled.rows)
    torch.testing.assert_close(pooled.gradients, unpooled.gradients)


def test_merged_halves_are_the_whole() -> None:
    case = small()
    whole = case.collect()
    zero_from = [case.gradient.clone(), case.gradient.clone()]
    zero_from[0][2:] = 0
    zero_from[1][:2] = 0
    parts = [reference.collect(case.group, case.indices, case.offsets, case.bags, part) for part in zero_from]
    merged = reference.merge(case.group, [*parts, empty_gradients(case.group)])
    assert torch.equal(merged.rows, whole.rows)
    assert torch.equal(merged.table_offsets, whole.table_offsets)
    torch.testing.assert_close(merged.gradients, whole.gradients)
    torch.testing.assert_close(merged.square_sums, whole.square_sums)


def test_only_the_table_with_a_broken_gradient_is_named() -> None:
    for broken in (float("nan"), float("inf"), 1e30):
        case = small()
        case.gradient[0, 0] = broken
        collected = case.collect()
        state = torch.full((15,), 0.1)
        factors = reference.factors(case.group, state, collected, collected.square_sums, Update(), 0.1)
        assert factors[0] == NON_FINITE
        assert 0 < factors[1] <= 1


@pytest.mark.parametrize("wrong", [-1, 9, 2**40])
def test_an_id_that_is_no_row_is_named_with_its_table(wrong: int) -> None:
    case = small()
    case.indices[-1] = wrong
    with pytest.raises(IndexError, match=f"^id {wrong} is not a row of table 1$"):
        reference.lookup(case.group, case.indices, case.offsets, case.bags)
    with pytest.raises(IndexError, match=f"^id {wrong} is not a row of table 1$"):
        case.collect()
