"""Configuration, granularities, sequences and the report."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from dlrm_mtl.balancing import (
    Balancing,
    BalancingConfig,
    TensorInfo,
    build_balancing,
    gram_of,
    not_finite_tasks,
)
from dlrm_mtl.balancing.base import TargetConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import registry
from dlrm_mtl.core.schema import Strict, validate

TASKS = ["buy", "cart", "favourite"]
TENSORS = [TensorInfo("user", is_table=True), TensorInfo("item", is_table=True), TensorInfo("w"), TensorInfo("b")]
BALANCERS = [entry.config for entry in registry("balancer")]
LOSSES = torch.tensor([0.5, 0.6, 0.7])
parse = TypeAdapter(BalancingConfig).validate_python


class Holder(Strict):
    """As in a run's configuration."""

    balancing: BalancingConfig


def gradients(seed: int = 0, tasks: int = 3) -> list[Tensor]:
    """For each tensor [T, n] float32."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 20.0, 0.1])[:tasks, None]
    return [scale * torch.randn(tasks, n, generator=generator) for n in (50, 7, 30, 4)]


def build(content: Any, tasks: list[str] | None = None) -> Balancing:
    return build_balancing(parse(content), tasks or TASKS, TENSORS)


def grams(rows: list[Tensor]) -> Tensor:
    return torch.stack([gram_of(row) for row in rows])


def combine(balancing: Balancing, rows: list[Tensor], step: int = 0) -> list[Tensor]:
    """The combined gradient of each tensor."""
    weights = balancing.step(grams(rows), LOSSES[: len(rows[0])], step).coefficients
    return [weight @ row.double() for weight, row in zip(weights, rows, strict=True)]


def test_every_method_is_named_and_described() -> None:
    described = registry("balancer").described()
    assert set(described) == {config.model_fields["name"].default for config in BALANCERS}
    for method in BALANCERS:
        name = method.model_fields["name"].default
        config = parse({"name": name, "target": "buy"} if issubclass(method, TargetConfig) else name)
        assert type(config) is method
        assert len(build_balancing(config, TASKS, TENSORS).stages) == 1
    assert len(build("none").stages) == 0


def test_only_metabalance_looks_at_tensors_one_by_one_unless_told_otherwise() -> None:
    default = {method.model_fields["name"].default: method.model_fields["granularity"].default for method in BALANCERS}
    assert default.pop("metabalance") == "tensor"
    assert set(default.values()) == {"global"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"name": "pcgard"}, "balancing.name: 'pcgard' is not a choice; did you mean 'pcgrad'?"),
        ({"name": "metabalance", "target": "buy", "relax": 1.5}, "balancing.relax: 1.5 does not fit"),
        ({"name": "metabalance", "target": "buy", "beta": 1}, "balancing.beta: 1 does not fit"),
        ({"name": "surgery"}, "balancing.target: this key is required"),
        ({"name": "pcgrad", "reduce": "sum"}, "there is no key 'reduce' here; did you mean 'reduction'?"),
        ({"name": "sequence", "stages": []}, "balancing.stages: the list is empty; add at least one entry"),
        (
            {"name": "sequence", "stages": [{"name": "pcgrad", "level": "representation"}]},
            "balancing: stage 0 has level 'representation' and the sequence 'parameters'; set level beside stages",
        ),
        (
            {"name": "sequence", "stages": [{"name": "pcgrad", "every": 3}], "every": 2},
            "balancing: stage 0 has every 3 and the sequence 2; set every beside stages",
        ),
        ({"name": "pcgrad", "every": 0}, "balancing.every: 0 does not fit"),
    ],
)
def test_mistakes_in_a_configuration(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as found:
        validate(Holder, {"balancing": content}, "run.yaml")
    assert sentence in str(found.value)


def test_a_target_that_is_no_task() -> None:
    with pytest.raises(
        UserError, match=r"^balancing.target: there is no task 'by'; did you mean 'buy'\? there are: buy,"
    ):
        build({"name": "metabalance", "target": "by"})
    with pytest.raises(UserError, match=r"^balancing.stages.1.target: there is no task 'click'; there are"):
        build({"name": "sequence", "stages": ["pcgrad", {"name": "surgery", "target": "click"}]})


@pytest.mark.parametrize(
    ("granularity", "members"),
    [("tensor", [[0], [1], [2], [3]]), ("group", [[0, 1], [2, 3]]), ("global", [[0, 1, 2, 3]])],
)
@pytest.mark.parametrize("method", [{"name": "surgery", "target": "buy"}, {"name": "cagrad"}, {"name": "nash_mtl"}])
def test_granularities(granularity: str, members: list[list[int]], method: dict[str, str]) -> None:
    rows = gradients(3)
    found = combine(build({**method, "granularity": granularity}), rows)
    for group in members:  # as if each group were the whole, one vector
        joined = torch.cat([rows[i] for i in group], dim=1)
        alone = build_balancing(parse(method), TASKS, [TensorInfo("all")])
        weights = alone.step(gram_of(joined).unsqueeze(0), LOSSES, 0).coefficients[0]
        wanted = weights @ joined.double()
        torch.testing.assert_close(torch.cat([found[i] for i in group]), wanted, rtol=1e-8, atol=1e-10)


def project(rows: np.ndarray, target: int) -> np.ndarray:
    inner = rows @ rows[target]
    share = np.where(inner < 0, inner / inner[target], 0)
    return rows - share[:, None] * rows[target]


def rescale(rows: np.ndarray, target: int, relax: float) -> np.ndarray:
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * (size[target] / size * relax + 1 - relax)


@pytest.mark.parametrize("first", ["metabalance", "surgery"])
@pytest.mark.parametrize("granularity", ["tensor", "global"])
def test_sequences_in_both_orders_on_vectors(first: str, granularity: str) -> None:
    balance = {"name": "metabalance", "target": "buy", "relax": 0.6, "beta": 0, "granularity": granularity}
    cut = {"name": "surgery", "target": "buy"}
    stages = [balance, cut] if first == "metabalance" else [cut, balance]
    rows = [-abs(row) * torch.tensor([[1.0], [-1.0], [1.0]]) if i == 2 else row for i, row in enumerate(gradients(5))]
    vectors = torch.cat(rows, dim=1).double().numpy()
    ends = np.cumsum([0] + [row.shape[1] for row in rows])
    for stage in stages:
        if stage is cut:
            vectors = project(vectors, 0)
        elif granularity == "global":
            vectors = rescale(vectors, 0, 0.6)
        else:
            vectors = np.concatenate([rescale(vectors[:, a:b], 0, 0.6) for a, b in itertools.pairwise(ends)], axis=1)
    found = torch.cat(combine(build({"name": "sequence", "stages": stages}), rows))
    np.testing.assert_allclose(found.numpy(), vectors.sum(axis=0), rtol=1e-8, atol=1e-10)


def test_with_global_norms_metabalance_changes_no_conflict_and_the_orders_differ_by_magnitude_only() -> None:
    balance = {"name": "metabalance", "target": "buy", "relax": 1, "beta": 0, "granularity": "global"}
    cut = {"name": "surgery", "target": "buy"}
    for seed in range(20):
        rows = gradients(seed, tasks=2)
        tasks = TASKS[:2]
        before, after = (build({"name": "sequence", "stages": s}, tasks) for s in ([balance, cut], [cut, balance]))
        gram = grams(rows)
        one = before.step(gram, LOSSES[:2], 0).coefficients
        other = after.step(gram, LOSSES[:2], 0).coefficients
        buy, cart = torch.cat(rows, dim=1).double()
        part_one, part_other = (
            torch.cat([w @ r.double() for w, r in zip(c, rows, strict=True)]) - buy for c in (one, other)
        )
        cosine = torch.cosine_similarity(part_one, part_other, dim=0)
        assert cosine.item() == pytest.approx(1), "the auxiliary's part has the same direction in both orders"
        if buy @ cart < 0:
            assert part_other.norm() > part_one.norm(), "balancing last makes up for what surgery took"
            assert part_other.norm().item() == pytest.approx(buy.norm().item())
        else:
            torch.testing.assert_close(part_one, part_other)


def test_report() -> None:
    rows = [torch.tensor([[3.0, 4.0], [3.0, -4.0], [0.0, 0.0]]), torch.tensor([[1.0], [-2.0], [0.0]])]
    balancing = build_balancing(parse("none"), TASKS, [TensorInfo("x"), TensorInfo("y")])
    report = balancing.step(grams(rows), LOSSES, 0)
    assert report.coefficients.tolist() == [[1.0] * 3] * 2
    assert report.norms.tolist() == pytest.approx([math.sqrt(26), math.sqrt(29), 0])
    assert report.cosines[0, 1].item() == pytest.approx((9 - 16 - 2) / math.sqrt(26 * 29))
    assert report.conflicting_pairs == 1.0, "in both tensors, of the one pair with gradients"
    assert report.combined_norm == pytest.approx(math.sqrt(36 + 1))
    figures = report.figures
    assert figures["norm/buy"] == pytest.approx(math.sqrt(26))
    assert figures["coefficient/cart"] == 1.0
    assert figures["cosine/buy~cart"] == pytest.approx(report.cosines[0, 1].item())
    assert math.isnan(figures["coefficient/favourite"])
    assert math.isnan(figures["cosine/buy~favourite"])


def test_one_task_and_no_tensors() -> None:
    for method in BALANCERS:
        name = method.model_fields["name"].default
        config = parse({"name": name, "target": "buy"} if issubclass(method, TargetConfig) else name)
        alone = build_balancing(config, ["buy"], TENSORS)
        report = alone.step(torch.full((4, 1, 1), 2.0), torch.tensor([0.3]), 0)
        assert report.coefficients.tolist() == [[1.0]] * 4
        nothing = build_balancing(config, TASKS, [])
        assert nothing.step(torch.zeros(0, 3, 3), LOSSES, 0).coefficients.shape == (0, 3)


def test_state_of_stages_is_saved() -> None:
    content = {"name": "sequence", "stages": [{"name": "metabalance", "target": "buy"}, "gradvac", "famo"]}
    one, other = build(content), build(content)
    assert one.needs_losses_after
    assert not build("pcgrad").needs_losses_after
    for step in range(6):
        if step == 3:
            assert other.load_state_dict(one.state_dict())
        rows = gradients(step)
        found = combine(one, rows, step)
        one.after(LOSSES * torch.tensor([0.9, 0.8, 0.7]))
        if step >= 3:
            for a, b in zip(found, combine(other, rows, step), strict=True):
                assert torch.equal(a, b)
            other.after(LOSSES * torch.tensor([0.9, 0.8, 0.7]))


def test_state_stays_where_it_is_computed_with() -> None:
    balancing = build({"name": "metabalance", "target": "buy"})
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "balancing": balancing}).to("meta", torch.float16)
    assert model["layer"].weight.dtype == torch.float16
    assert {(v.device.type, v.dtype) for v in balancing.state_dict().values()} == {
        ("cpu", torch.float64),
        ("cpu", torch.int64),
    }
    combine(balancing, gradients())


def test_gram_of() -> None:
    rows = (
        torch.randn(3, 2, 5001, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-12, 1, 1e12])[:, None, None]
    )
    wanted = rows.reshape(3, -1).double() @ rows.reshape(3, -1).double().T
    torch.testing.assert_close(gram_of(rows, chunk=100), wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(gram_of(list(rows)), wanted, rtol=1e-12, atol=0)
    some = gram_of([rows[0], None, rows[2].transpose(0, 1).contiguous().transpose(0, 1)])
    wanted[1], wanted[:, 1] = 0, 0
    torch.testing.assert_close(some, wanted, rtol=1e-12, atol=0)
    assert gram_of([None, None]).tolist() == [[0, 0], [0, 0]]
    assert gram_of(torch.zeros(2, 0)).tolist() == [[0, 0], [0, 0]]


def test_tasks_with_gradients_that_are_not_finite_are_named() -> None:
    rows = gradients()
    rows[1][2, 3] = float("inf")
    rows[3][0, 0] = float("nan")
    assert not_finite_tasks(grams(rows), TASKS) == ["buy", "favourite"]
    assert not_finite_tasks(grams(gradients()), TASKS) == []
