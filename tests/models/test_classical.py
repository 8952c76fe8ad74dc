"""Whole models against literal ones, row by row: what they compute, how many parameters, which gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.core.batch_random import BatchRandom
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.models.base import RankingModel
from dlrm_mtl.models.blocks import ParallelLinear
from dlrm_mtl.models.classical.logistic_regression import LogisticRegressionConfig
from dlrm_mtl.models.classical.multitask_net import MultitaskNetConfig
from dlrm_mtl.models.classical.ncf import NCFConfig
from dlrm_mtl.models.classical.neumf import NeuMFConfig
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.dropout import connect_dropout
from dlrm_mtl.models.registry import build_ranking_model
from tests.models.inputs import ITEMS, USERS, bags, batch, inputs, on_cpu, table

ROWS = 6
PAIR = {"user": "user", "item": "item"}
SCORE_AND_CLICK = [{"name": "score", "label": "click", "loss": "bpr"}, {"name": "buy"}]
CONFIGS: dict[str, Any] = {
    "logistic_regression": LogisticRegressionConfig(name="logistic_regression"),
    "ncf": NCFConfig.model_validate(
        {"name": "ncf", "embeddings": {"dim": 4}, "bottom": {"layers": [6, 5]}, "tower": {"layers": [3]}}
    ),
    "neumf": NeuMFConfig.model_validate(
        {"name": "neumf", **PAIR, "dim": 4, "deep_dim": 8, "deep": {"layers": [6, 3]}, "tower": {"layers": [5]}}
    ),
    "shared": MultitaskNetConfig.model_validate(
        {"name": "multitask_net", **PAIR, "dim": 4, "regression": {"layers": [6]}}
    ),
    "separate": MultitaskNetConfig.model_validate(
        {"name": "multitask_net", **PAIR, "dim": 4, "regression": {"layers": [6]}, "embeddings": "separate"}
    ),
}


def P(d: int, layers: list[int]) -> int:
    """Parameters of a stack of linear layers with biases."""
    return sum(h * (before + 1) for before, h in zip([d, *layers], layers, strict=False))


def build(name: str, tasks: list[dict[str, Any]] | None = None) -> RankingModel:
    torch.manual_seed(1)
    default = SCORE_AND_CLICK if isinstance(CONFIGS[name], MultitaskNetConfig) else None
    return build_ranking_model(CONFIGS[name], inputs(tasks=tasks or default))


def size(model: RankingModel) -> int:
    outside = [p for name, p in model.named_parameters() if not name.startswith("lookup.")]
    return model.lookup.table_set.parameters + sum(p.numel() for p in outside)


def linear(layer: Any, x: Tensor, number: int = 0) -> Tensor:
    """One layer of one stack on one row, without a batched product."""
    weight, bias = (
        (layer.weight, layer.bias) if isinstance(layer, nn.Linear) else (layer.weight[number], layer.bias[number])
    )
    return torch.stack([(w * x).sum() + b for w, b in zip(weight, bias, strict=True)])


def stack(module: Any, x: Tensor, number: int = 0) -> Tensor:
    """A stack of layers with relu on one row."""
    for layer in getattr(module, "stack", module).layers:
        if isinstance(layer, ParallelLinear):
            x = linear(layer, x, number).clamp(min=0)
    return x


def mean_of(weights: Tensor, ids: list[int]) -> Tensor:
    return sum((weights[i] for i in ids), torch.zeros(weights.shape[1])) / max(len(ids), 1)


def test_parameter_counts() -> None:
    V, N, T = USERS + 2 * ITEMS, 2, 4
    four = [{"name": name, "label": "click"} for name in "abcd"]
    assert size(build("logistic_regression", four)) == T * (V + N + 1)
    assert build("logistic_regression", four).lookup.table_set.padding["user"] == 0
    assert size(build("logistic_regression", four[:3])) == 3 * (V + N + 1)
    V, d, features, tasks = USERS + ITEMS, 4, 3, 2
    towers = tasks * (P(5 + features * d, [3]) + 3 + 1)
    assert size(build("ncf")) == 2 * (V * d + (N + 1) * d) + P((features + 1) * d, [6, 5]) + towers
    assert size(build("neumf")) == V * (4 + 8) + P(16, [6, 3]) + tasks * (P(4 + 3, [5]) + 5 + 1)
    shared = V * d + ITEMS + P(3 * d, [6]) + 7
    assert size(build("shared")) == shared
    assert size(build("separate")) == shared + V * d


@pytest.mark.parametrize(("embeddings", "wanted"), [("shared", 92_020), ("separate", 176_084)])
def test_the_size_of_the_published_model(embeddings: str, wanted: int) -> None:
    spec = inputs(tasks=[{"name": "score", "label": "click", "loss": "bpr_probability"}, {"name": "buy"}])
    sizes = {"user": 944, "item": 1683}
    features = [
        f.model_copy(update={"vocabulary_size": sizes.get(f.name)}) for f in spec.spec.features if f.name in sizes
    ]
    small = type(spec)(spec.spec.model_copy(update={"features": features}), ["user", "item"], [], spec.tasks)
    config = MultitaskNetConfig.model_validate({"name": "multitask_net", **PAIR, "embeddings": embeddings})
    assert size(build_ranking_model(config, small)) == wanted
    stds = build_ranking_model(config, small).lookup.table_set.stds
    assert {name: std for name, std in stds.items() if "bias" not in name} == dict.fromkeys(
        stds.keys() - {"bias_item"}, 1 / 32
    )
    assert stds["bias_item"] == 0.0


def literal_logistic_regression(model: Any, b: Any, row: int) -> list[Tensor]:
    weights = [model.bias[t] + (model.weight[t] * b.dense[row]).sum() for t in range(2)]
    for key in ("user", "item", "history"):
        for i in bags(b, key)[row]:
            weights = [w + table(model, key)[i, t] for t, w in enumerate(weights)]
    return weights


def literal_ncf(model: Any, b: Any, row: int) -> list[Tensor]:
    names = {"user": "user", "item": "item", "history": "item"}
    first, second = (
        [mean_of(table(model, f"{half}_{name}"), bags(b, key)[row]) for key, name in names.items()]
        for half in ("product", "deep")
    )
    factor, field = linear(model.factor, b.dense[row]), linear(model.field, b.dense[row])
    both = torch.cat([*(e * factor for e in first), stack(model.bottom, torch.cat([*second, field]))])
    return [linear(model.logits, stack(model.towers, both, t), t)[0] for t in range(2)]


def literal_neumf(model: Any, b: Any, row: int) -> list[Tensor]:
    (u,), (i,) = bags(b, "user")[row], bags(b, "item")[row]
    product = table(model, "product_user")[u] * table(model, "product_item")[i]
    deep = stack(model.deep, torch.cat([table(model, "deep_user")[u], table(model, "deep_item")[i]]))
    both = torch.cat([product, deep])
    return [linear(model.logits, stack(model.towers, both, t), t)[0] for t in range(2)]


def literal_multitask_net(model: Any, b: Any, row: int) -> list[Tensor]:
    (u,), (i,) = bags(b, "user")[row], bags(b, "item")[row]
    separate = "regression_user" in model.lookup.table_set.stds
    p, q = ("factorisation_user", "factorisation_item") if separate else ("user", "item")
    score = (table(model, p)[u] * table(model, q)[i]).sum() + table(model, "bias_item")[i, 0]
    p, q = ("regression_user", "regression_item") if separate else ("user", "item")
    user, item = table(model, p)[u], table(model, q)[i]
    hidden = stack(model.regression, torch.cat([user, item, user * item]))
    return [score, linear(model.predictions, hidden)[0]]


LITERAL = {
    "logistic_regression": literal_logistic_regression,
    "ncf": literal_ncf,
    "neumf": literal_neumf,
    "shared": literal_multitask_net,
    "separate": literal_multitask_net,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_against_a_literal_model(name: str) -> None:
    model, b = on_cpu(build(name)).eval(), batch(ROWS)
    for parameter in (model.bias, model.weight) if name == "logistic_regression" else ():
        nn.init.normal_(parameter)
    with torch.no_grad():
        wanted = torch.stack([torch.stack(LITERAL[name](model, b, row)) for row in range(ROWS)])
        torch.testing.assert_close(model(b), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_a_gradient(name: str, rows: int) -> None:
    model, b = on_cpu(build(name)).train(), batch(rows)
    b.labels.fill_(1.0)
    logits = model(b)
    assert logits.shape == (rows, 2)
    F.softplus(-logits * torch.tensor([1.0, 0.5])).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert rows < 40 or parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", CONFIGS)
def test_no_rows(name: str) -> None:
    model = build(name).train()  # TorchRec's unsharded tables take no empty batch, so this is what follows them
    features = torch.empty(0, sum(model.lookup.widths), requires_grad=True)
    logits = model.own_logits(features, torch.empty(0, 2))
    assert logits.shape == (0, 2)
    logits.sum().backward()
    outside = [p for key, p in model.named_parameters() if not key.startswith("lookup.")]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in outside)


def test_margins_in_training() -> None:
    """In training the logit of a ranking task is p - logsumexp of the scores of what was drawn."""
    tasks = [
        {"name": "first", "label": "click", "loss": "bpr"},
        {"name": "second", "label": "click", "loss": {"name": "softmax_cross_entropy", "negatives": 3}},
        {"name": "buy"},
    ]
    model: Any = on_cpu(build("shared", tasks)).train()
    b = batch(ROWS, tasks=3)
    b.labels[:, :2] = 1.0
    b.labels[2] = 0.0  # a row that no ranking task learns from draws nothing
    stream = BatchRandom(5, range(2))
    connect_dropout(model, stream)
    drawn = model.negatives(ROWS, b.labels.device)
    assert torch.equal(drawn, model.negatives(ROWS, b.labels.device))
    ids = model.ids(b)
    for row in range(ROWS):
        for number in range(3):
            assert ids[f"item/negative_{number}"].lengths()[row] == (row != 2)
    logits = model(b)

    def score(u: int, i: int) -> Tensor:
        return (table(model, "user")[u] * table(model, "item")[i]).sum() + table(model, "bias_item")[i, 0]

    for row in set(range(ROWS)) - {2}:
        (u,), (i,) = bags(b, "user")[row], bags(b, "item")[row]
        scores = torch.stack([score(u, int(n)) for n in drawn[row]])
        torch.testing.assert_close(logits[row, 0], score(u, i) - scores[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits[row, 1], score(u, i) - scores.logsumexp(0), rtol=1e-5, atol=1e-6)
    stream.step = 1
    assert not torch.equal(drawn, model.negatives(ROWS, b.labels.device))


def test_negatives_are_uniform_and_belong_to_lanes() -> None:
    from dlrm_mtl.models.dropout import LaneNegatives

    negatives = LaneNegatives(10, 2)
    negatives.stream = BatchRandom(3, range(4))
    whole = negatives(40_000, torch.device("cpu"))
    counts = torch.bincount(whole.flatten(), minlength=10)
    assert len(counts) == 10
    assert ((counts - 8000).abs() < 6 * math.sqrt(8000)).all()
    negatives.stream = BatchRandom(3, range(2, 4))
    assert torch.equal(negatives(20_000, torch.device("cpu")), whole[20_000:])


def test_dense_norms() -> None:
    torch.manual_seed(0)
    b = batch(50, dense=3)
    made = {}
    for name in ("none", "standardise", "layer", "batch"):
        config = ModelConfig.model_validate({"dense_norm": name, "embeddings": {"dim": 4}})
        made[name] = build_ranking_model(config, inputs(dense=3)).train().dense_norm(b.dense)
    assert torch.equal(made["standardise"], b.dense)
    raw = b.dense.double() * torch.tensor([0.5, 1.5, 2.5]).double() + torch.tensor([0.0, 1.0, 2.0]).double()
    torch.testing.assert_close(made["none"].double(), raw, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made["layer"], F.layer_norm(b.dense, (3,)))
    torch.testing.assert_close(made["batch"], F.batch_norm(b.dense, None, None, training=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "dense", "sentence"),
    [
        (
            {"name": "ncf"},
            0,
            "model.name: ncf multiplies features with dense ones and the run reads none; add data.dense.",
        ),
        (
            {"name": "ncf", "embeddings": {"features": {"history": "sum"}}},
            2,
            "model.embeddings.features.history: ncf has one way to pool features; use pooling instead.",
        ),
        (
            {"name": "ncf", "embeddings": {"dim": 4, "tables": {"item": {"dim": 8}}}},
            2,
            "model.embeddings.tables: ncf needs tables of one width and finds [4, 8]; remove dim.",
        ),
        (
            {"name": "neumf", "user": "usr", "item": "item"},
            2,
            "model.user: the run reads no feature 'usr'; did you mean 'user'? there are: history, item, user.",
        ),
        (
            {"name": "multitask_net", "user": "item", "item": "item"},
            2,
            "model.item: 'item' is model.user as well; name the feature that holds the item.",
        ),
    ],
)
def test_mistakes(model: dict[str, Any], dense: int, sentence: str) -> None:
    from dlrm_mtl.config.run import RunConfig

    config = RunConfig.model_validate(
        {"name": "x", "data": {"path": "."}, "tasks": [{"name": "click"}], "model": model}
    )
    with pytest.raises(UserError) as error:
        build_ranking_model(config.model, inputs(dense=dense))
    assert str(error.value) == sentence


def test_key_paths_do_not_name_the_model() -> None:
    from dlrm_mtl.config.run import RunConfig

    base = {"name": "x", "data": {"path": "."}, "tasks": [{"name": "click"}]}
    for model, sentence in [
        (
            {"embeddings": {"dimm": 4}},
            "run.yaml: model.embeddings.dimm: there is no key 'dimm' here; did you mean 'dim'?",
        ),
        ({"towr": {}}, "run.yaml: model.towr: there is no key 'towr' here; did you mean 'tower'?"),
        ({"name": "neumf", "user": "u"}, "run.yaml: model.item: this key is required; add it."),
        ({"name": "neumff"}, "run.yaml: model.name: 'neumff' is not a choice; did you mean 'neumf'?"),
        (
            {"embeddings": {"features": {"h": "flattened"}}},
            "run.yaml: model.embeddings.features.h: flattened needs a length, the number of vectors; add one",
        ),
        ({"multitask": {"name": "mmoe", "layers": [0]}}, "run.yaml: model.multitask.layers: layers [0] holds a width"),
    ]:
        with pytest.raises(UserError) as error:
            validate(RunConfig, {**base, "model": model}, "run.yaml")
        assert str(error.value).startswith(sentence), str(error.value)
