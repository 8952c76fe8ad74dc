"""The two-phase update against a literal, unsharded one, under every plan."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.embeddings import two_phase_model as tiny
from tests.processes import run_processes

STEPS = 50
PLAIN = {"lr": 0.5, "rel": 0.5, "abs": 1e-2}
RULES: dict[str, dict[str, Any]] = {
    "table": PLAIN,
    "row": {"lr": 0.02, "rel": 0.1, "abs": 1e-3, "per_row": True},
    "delayed": {**PLAIN, "delayed": True, "lr": 0.05},
}
MIXTURES = {
    "mixture": {"a": "row_wise", "b": {"type": "column_wise", "column_shards": 4}, "c": "data_parallel"},
    "other mixture": {"a": "column_wise", "b": "grid_shard", "c": "table_wise"},
}


def plans(world_size: int) -> dict[str, dict[str, Any]]:
    hosts = {"processes_per_host": 2} if world_size == 4 else {}
    result: dict[str, dict[str, Any]] = {name: {"default": name, **hosts} for name in tiny.SHARDING_TYPES}
    return result | {name: {"tables": tables, **hosts} for name, tables in MIXTURES.items()}


def rule_of(rule: dict[str, Any]) -> Any:
    from dlrm_mtl.embeddings.rules import ClippyRowWiseAdagrad

    return ClippyRowWiseAdagrad(
        learning_rate=rule["lr"],
        lambda_rel=rule["rel"],
        lambda_abs=rule["abs"],
        accumulator="delayed" if rule.get("delayed") else "standard",
        scope="row" if rule.get("per_row") else "table",
    )


def train(
    rank: int,
    rules: dict[str, dict[str, Any]],
    shardings: dict[str, dict[str, Any]],
    steps: int,
    pairs: list[tuple[str, str]] | None = None,
    **options: Any,
) -> dict[tuple[str, str], Any]:
    """Weights, accumulators and factors after some steps with each pair of a rule and a plan; default: all pairs."""
    import torch.distributed as dist

    from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer

    world_size = dist.get_world_size()
    results = {}
    for rule_name, plan_name in pairs or list(itertools.product(rules, shardings)):
        model = tiny.shard(shardings[plan_name], **options)
        optimizer = TwoPhaseOptimizer(model, rule_of(rules[rule_name]), rules[rule_name].get("rates"))
        factors = []
        for step in range(steps):
            ids, target = tiny.local_batch(step, rank, world_size, options.get("weighted", False))
            (model(ids, target) * world_size / tiny.BATCH).backward()
            optimizer.step()
            factors.append({name.rpartition(".")[2]: value for name, value in optimizer.report.factors.items()})
        results[rule_name, plan_name] = (*tiny.tables_of(model, optimizer), factors)
    return results


def compare(result: Any, reference: tiny.Reference, what: object, rtol: float = 1e-5) -> None:
    weights, accumulators, factors = result
    for table in tiny.TABLES:
        for ours, theirs in (
            (weights[table].float(), reference.weights[table]),
            (accumulators[table], reference.accumulators[table]),
        ):
            difference = (ours - theirs).abs() / (theirs.abs() + 0.1)
            assert difference.max() < rtol, (what, table, difference.max())
    if factors[0]:
        for ours, theirs in zip(factors, reference.factors, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4), what


@pytest.fixture(scope="module")
def references() -> dict[str, tiny.Reference]:
    result = {}
    for name, rule in RULES.items():
        result[name] = tiny.Reference(rule)
        for step in range(STEPS):
            result[name].step(step)
    return result


@pytest.mark.parametrize("rates", [{"a": 0.25, "c": 0.5}, {"b": 0.0, "c": 0.3}], ids=["slow", "frozen"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_tables_with_rates_of_their_own(world_size: int, rates: dict[str, float]) -> None:
    rules = {name: {**rule, "rates": rates} for name, rule in RULES.items()}
    some = {name: plan for name, plan in plans(world_size).items() if name in ("table_wise", "mixture")}
    results = run_processes(world_size, train, rules, some, 6)[0]
    for name, rule in rules.items():
        reference = tiny.Reference(rule)
        for step in range(6):
            reference.step(step)
        for plan in some:
            weights, accumulators, factors = results[name, plan]
            compare((weights, accumulators, [{}] * 6 if rule.get("per_row") else factors), reference, (name, plan))
    assert any(min(factors.values()) < 0.9 for factors in results["table", "mixture"][2]), "clipping is active"


def one_step(rank: int, rule: str, options: dict[str, Any], rates: dict[str, float]) -> tuple[Any, dict[str, float]]:
    """Weights and largest moves after one step of a registered rule."""
    from dlrm_mtl.core.registry import registry
    from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer

    model = tiny.shard({"default": "table_wise"})
    optimizer = TwoPhaseOptimizer(model, registry("table_optimizer")[rule].config(**options), rates)
    (model(*tiny.local_batch(0, rank, 1, False)) / tiny.BATCH).backward()
    optimizer.step(measure=True)
    weights = {key.split(".")[-2]: tiny.whole(v) for key, v in model.state_dict().items() if key.endswith(".weight")}
    return weights, optimizer.report.scalars()


@pytest.mark.parametrize("rule", ["sgd", "rowwise_adagrad", "adagrad", "rowwise_adam", "adam", "ftrl"])
def test_a_rate_of_a_table_is_a_smaller_learning_rate(rule: str) -> None:
    runs = {rate: run_processes(1, one_step, rule, {"learning_rate": 0.2 * rate}, {})[0] for rate in (1.0, 0.25)}
    weights, moves = run_processes(1, one_step, rule, {"learning_rate": 0.2}, {"a": 0.25, "b": 0.0})[0]
    torch.testing.assert_close(weights["a"], runs[0.25][0]["a"])
    assert torch.equal(weights["b"], tiny.initial_weights("b"))
    assert torch.equal(weights["c"], runs[1.0][0]["c"])
    if "largest_move/a" in moves:
        assert moves["largest_move/a"] == pytest.approx(runs[0.25][1]["largest_move/a"])
        assert moves["largest_move/b"] == 0


def test_a_rate_of_no_table() -> None:
    with pytest.raises(AssertionError, match="there is no table 'd'; there are a, b, c"):
        run_processes(1, one_step, "sgd", {"learning_rate": 0.2}, {"d": 0.5})


WORLD_SIZES = [1, 2, 4]


def some_pairs(world_size: int) -> list[tuple[str, str]]:
    """A third of the pairs of a rule and a plan, so that each pair is tried on one of the numbers of processes."""
    pairs = enumerate(itertools.product(RULES, plans(world_size)))
    shift = WORLD_SIZES.index(world_size)
    return [pair for number, pair in pairs if (number + number // len(plans(world_size)) + shift) % 3 == 0]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(
    "every", [pytest.param(False, id="a third"), pytest.param(True, id="all", marks=pytest.mark.slow)]
)
def test_every_plan_gives_the_unsharded_result(
    references: dict[str, tiny.Reference], world_size: int, every: bool
) -> None:
    clipped = [factors for factors in references["table"].factors if min(factors.values()) < 0.9]
    assert len(clipped) > STEPS // 2, "clipping is active"
    chosen = None if every else some_pairs(world_size)
    results = run_processes(world_size, train, RULES, plans(world_size), STEPS, chosen)[0]
    for (rule, plan), (weights, accumulators, factors) in results.items():
        if RULES[rule].get("per_row"):
            factors = [{}] * STEPS  # there is a factor for each row, which is not reported
        compare((weights, accumulators, factors), references[rule], (rule, plan, world_size))


@pytest.mark.parametrize(("pooling", "weighted"), [("mean", False), ("sum", True)])
def test_pooling(pooling: str, weighted: bool) -> None:
    reference = tiny.Reference(PLAIN, pooling, weighted)
    for step in range(10):
        reference.step(step)
    hosts = {"processes_per_host": 2}
    shardings = {name: {"tables": tables, **hosts} for name, tables in MIXTURES.items()}
    shardings |= {name: {"default": name, **hosts} for name in ("table_wise", "row_wise")}
    results = run_processes(4, pooled, pooling, weighted, shardings)[0]
    for plan, result in results.items():
        # TorchRec adds 1e-6 to the divisor of means under row_wise.
        compare(result, reference, plan, rtol=1e-4 if pooling == "mean" else 1e-5)


def pooled(rank: int, pooling: str, weighted: bool, shardings: dict[str, Any]) -> dict[str, Any]:
    results = train(rank, {"table": PLAIN}, shardings, 10, pooling=pooling, weighted=weighted)
    return {plan: result for (_, plan), result in results.items()}


def test_half_precision_tables_compute_in_single_precision() -> None:
    reference = tiny.Reference(PLAIN)
    for step in range(5):
        reference.step(step)
    (weights, accumulators, _), *_ = run_processes(2, halves)[0].values()
    for table in tiny.TABLES:
        assert weights[table].dtype == torch.float16
        torch.testing.assert_close(weights[table].float(), reference.weights[table], rtol=5e-3, atol=5e-3)
        assert accumulators[table].dtype == torch.float32


def halves(rank: int) -> dict[tuple[str, str], Any]:
    return train(rank, {"table": PLAIN}, {"row_wise": {"default": "row_wise"}}, 5, half=True)


def test_backward_passes_before_a_step_add_up() -> None:
    reference = tiny.Reference(PLAIN)
    for first in (0, 2, 4):
        reference.step(first, first + 1)
    weights, accumulators = run_processes(2, accumulated)[0]
    compare((weights, accumulators, [{}]), reference, "two backward passes a step")


def accumulated(rank: int) -> Any:
    """Three steps, each after two backward passes."""
    from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer

    model = tiny.shard(
        {"tables": {"a": "row_wise", "b": {"type": "column_wise", "column_shards": 4}, "c": "table_wise"}}
    )
    optimizer = TwoPhaseOptimizer(model, rule_of(PLAIN))
    for first in (0, 2, 4):
        for step in (first, first + 1):
            (model(*tiny.local_batch(step, rank, 2, False)) * 2 / tiny.BATCH).backward()
        optimizer.step()
    return tiny.tables_of(model, optimizer)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_anywhere(bad: float) -> None:
    for before, after, report, again in run_processes(2, poisoned, bad):
        assert report.skipped
        assert report.non_finite == ["tables.b"]
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert torch.equal(value, after[key]), key
        assert not again.skipped


def poisoned(rank: int, bad: float) -> Any:
    """One process meets a bad gradient in one table; its shards before and after, and the next step."""
    from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer

    model = tiny.shard({"tables": {"a": "row_wise", "b": "column_wise", "c": "data_parallel"}})
    optimizer = TwoPhaseOptimizer(model, rule_of(PLAIN))

    def local() -> dict[str, Tensor]:
        tensors = {f"w{n}": t.group.weights.clone() for n, t in enumerate(optimizer.tables)}
        return tensors | {f"a{n}": t.states["accumulator"].clone() for n, t in enumerate(optimizer.tables)}

    def backward(step: int, factor: float) -> None:
        ids, _ = tiny.local_batch(step, rank, 2, False)
        pooled = model.module.tables(ids).to_dict()
        # Only the gradient of f1, in table b, is spoiled, and only on one process.
        spoiled = {name: value * (factor if name == "f1" and rank == 1 else 1.0) for name, value in pooled.items()}
        torch.cat(list(spoiled.values()), dim=1).sum().backward()

    backward(0, 1.0)
    optimizer.step()
    before = local()
    backward(1, bad)
    optimizer.step()
    after, report = local(), optimizer.report
    backward(2, 1.0)
    optimizer.step()
    return before, after, report, optimizer.report


def test_bad_options_and_models_are_refused() -> None:
    from dlrm_mtl.embeddings.rules import SGD, ClippyRowWiseAdagrad, RowWiseAdam
    from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer

    with pytest.raises(ValueError, match=r"learning_rate\n.*greater than 0.*input_value=-1"):
        ClippyRowWiseAdagrad(learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"lambda_abs\n.*finite.*input_value=nan"):
        ClippyRowWiseAdagrad(lambda_abs=float("nan"))
    with pytest.raises(ValueError, match=r"scope\n.*'table' or 'row'.*input_value='tables'"):
        ClippyRowWiseAdagrad(scope="tables")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="betas"):
        RowWiseAdam(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="two_phase_sharders"):
        TwoPhaseOptimizer(torch.nn.Linear(2, 2), SGD(learning_rate=0.1))
