"""Rules with state per element under every plan, against PyTorch's optimizers on unsharded tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.embeddings import two_phase_model as tiny
from tests.embeddings.test_two_phase import plans
from tests.processes import run_processes

STEPS = 8
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
RULES: dict[str, tuple[dict[str, Any], Optimizer, bool]] = {
    # options of the rule, the optimizer of PyTorch, and whether that takes sparse gradients
    "touched": ({"name": "adam"}, lambda tables: torch.optim.SparseAdam(tables, lr=0.05), True),
    "all": ({"name": "adam", "rows": "all"}, lambda tables: torch.optim.Adam(tables, lr=0.05), False),
    "adagrad": (
        {"name": "adagrad", "initial_accumulator_value": 0.1},
        lambda tables: torch.optim.Adagrad(tables, lr=0.05, initial_accumulator_value=0.1),
        False,
    ),
}
STATES = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq", "accumulator": "sum"}
"""Names of the state here and in PyTorch."""


def train(rank: int, pairs: list[tuple[str, str]], rates: dict[str, float]) -> dict[tuple[str, str], Any]:
    """Weights and state by table after some steps, whole, for each pair of a rule and a plan."""
    import torch.distributed as dist

    from dlrm_mtl.core.registry import registry
    from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer

    world_size = dist.get_world_size()
    results = {}
    for rule, plan in pairs:
        options = RULES[rule][0]
        model = tiny.shard(plans(world_size)[plan])
        config = registry("table_optimizer")[options["name"]].config(learning_rate=0.05, **options)
        optimizer = TwoPhaseOptimizer(model, config, rates)
        for step in range(STEPS):
            ids, target = tiny.local_batch(step, rank, world_size, False)
            (model(ids, target) * world_size / tiny.BATCH).backward()
            optimizer.step()
        tables = {
            key.split(".")[-2]: {"weight": tiny.whole(value)}
            for key, value in model.state_dict().items()
            if key.endswith(".weight")
        }
        for name, state in optimizer.state_by_table().items():
            tables[name.rpartition(".")[2]] |= {key: tiny.whole(value) for key, value in state.items()}
        results[rule, plan] = tables
    return results


def expected(rule: str) -> dict[str, dict[str, Tensor]]:
    """The same by PyTorch's optimizer, on whole tables."""
    _, stock, sparse = RULES[rule]
    model = tiny.Reference({})
    tables = {name: torch.nn.Parameter(weight) for name, weight in model.weights.items()}
    optimizer = stock(list(tables.values()))
    for step in range(STEPS):
        leaves = {name: weight.detach().clone().requires_grad_() for name, weight in tables.items()}
        model.loss(leaves, step).backward()
        ids = tiny.batch(step)[0]
        for name, weight in tables.items():
            gradient = leaves[name].grad
            assert gradient is not None
            rows = sorted({row for f, t in tiny.FEATURES.items() if t == name for bag in ids[f] for row in bag})
            chosen = torch.tensor([rows])
            weight.grad = torch.sparse_coo_tensor(chosen, gradient[chosen[0]], weight.shape) if sparse else gradient
        optimizer.step()
    return {
        name: {"weight": weight.data}
        | {ours: optimizer.state[weight][key] for ours, key in STATES.items() if key in optimizer.state[weight]}
        for name, weight in tables.items()
    }


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(
    "every", [pytest.param(False, id="a third"), pytest.param(True, id="all", marks=pytest.mark.slow)]
)
def test_a_rule_is_pytorchs_under_every_plan(world_size: int, every: bool) -> None:
    pairs = [
        pair
        for number, pair in enumerate(itertools.product(RULES, plans(world_size)))
        if every or number % 3 == {1: 0, 2: 1, 4: 2}[world_size]
    ]
    references = {rule: expected(rule) for rule in RULES}
    for (rule, plan), tables in run_processes(world_size, train, pairs, {})[0].items():
        for table, wanted in references[rule].items():
            assert tables[table].keys() == wanted.keys()
            for key, value in wanted.items():
                torch.testing.assert_close(
                    tables[table][key], value, rtol=1e-4, atol=5e-5, msg=f"{rule}, {plan}, {table}, {key}"
                )
    adam, lazy = (references[rule]["a"]["weight"] for rule in ("all", "touched"))
    assert (adam - lazy).abs().max() > 0.01, "not every row is in every batch"


def test_a_frozen_table_does_not_move() -> None:
    tables = run_processes(1, train, [("all", "table_wise")], {"b": 0.0})[0]["all", "table_wise"]
    assert torch.equal(tables["b"]["weight"], tiny.initial_weights("b"))
    assert not tables["b"]["first_moment"].any()
    assert not torch.equal(tables["a"]["weight"], tiny.initial_weights("a"))
