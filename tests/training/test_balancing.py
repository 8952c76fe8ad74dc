"""Gradient balancing in runs against a literal, unsharded implementation that writes every task's gradient out."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import synthetic
from tests.processes import run_processes
from tests.training.test_plan_invariance import shardings

STEPS = 4
RATE = 0.5
TASKS = [
    {"name": "click"},
    {"name": "buy", "weight": 0.5},
    {"name": "dislike", "label": "click", "loss": "focal", "weight": 2.0},
]
PRIVATE = ("towers.", "logits.", "multitask.gates.")
"""Parameters of single tasks, by what their names begin with."""
METHODS: dict[str, dict[str, Any]] = {
    "metabalance": {"name": "metabalance", "target": "click", "relax": 0.7, "granularity": "tensor"},
    "surgery": {"name": "surgery", "target": "buy"},
    "similarity": {"name": "similarity", "target": "buy", "granularity": "tensor"},
    "pcgrad": {"name": "pcgrad", "granularity": "group", "seed": 5},
    "gradvac": {"name": "gradvac"},
    "cagrad": {"name": "cagrad"},
    "mgda": {"name": "mgda"},
    "imtl_g": {"name": "imtl_g"},
    "aligned_mtl": {"name": "aligned_mtl"},
    "nash_mtl": {"name": "nash_mtl"},
    "gradnorm": {"name": "gradnorm"},
    "famo": {"name": "famo"},
    "two stages": {
        "name": "sequence",
        "stages": [{"name": "metabalance", "target": "buy"}, {"name": "surgery", "target": "buy"}],
    },
    "every second step": {"name": "metabalance", "target": "click", "granularity": "tensor", "every": 2},
    "at the features, every third step": {"name": "gradvac", "level": "representation", "every": 3},
    "at the features": {"name": "metabalance", "target": "click", "level": "representation", "granularity": "tensor"},
}


def configuration(folder: Path, balancing: dict[str, Any], sharding: dict[str, Any]) -> Any:
    from dlrm_mtl.config.run import RunConfig

    optimizer = {
        "sparse": {"name": "sgd", "learning_rate": RATE},
        "dense": {"name": "sgd", "learning_rate": RATE},
    }
    content = synthetic.config(folder, tasks=TASKS, optimizer=optimizer, balancing=balancing, sharding=sharding)
    return RunConfig.model_validate(content)


class Literal:
    """The same run on one process, without sharding: every gradient is a dense tensor, and combined one by one."""

    def __init__(self, config: Any) -> None:
        from dlrm_mtl.balancing import TensorInfo, build_balancing
        from dlrm_mtl.core.batch_random import BatchRandom
        from dlrm_mtl.data.chosen_columns import select
        from dlrm_mtl.data.dataset import open_dataset
        from dlrm_mtl.embeddings.tables import initialise
        from dlrm_mtl.models.base import ModelInputs
        from dlrm_mtl.models.dropout import connect_dropout
        from dlrm_mtl.models.registry import build_ranking_model
        from dlrm_mtl.tasks.check import starting_logits
        from dlrm_mtl.tasks.losses import TaskLosses
        from dlrm_mtl.tasks.targets import Targets

        spec = open_dataset(config.data.path).spec
        selection = select(spec, config.data, [])
        torch.manual_seed(config.seed)
        inputs = ModelInputs(spec, selection.keys, selection.dense, config.tasks)
        self.model = build_ranking_model(config.model, inputs)
        self.model.start_from(starting_logits(config.tasks, spec))
        tables = self.model.lookup.table_set
        self.model.lookup.materialise()
        initialise(self.model, tables.stds, config.seed)
        self.stream = BatchRandom(config.seed, range(config.data.lanes))
        connect_dropout(self.model, self.stream)
        self.parameters = dict(self.model.named_parameters())
        self.shared = [name for name in self.parameters if not name.startswith(PRIVATE)]
        tensors = [TensorInfo(name, "embedding_bags" in name) for name in self.shared]
        self.balancing = build_balancing(config.balancing, [task.name for task in config.tasks], tensors)
        self.at_features = getattr(config.balancing, "level", "parameters") == "representation"
        self.config = config
        self.kept: list[float] = []
        self.targets, self.losses = Targets(config.tasks), TaskLosses(config.tasks, torch.device("cpu"))
        self.model.lookup.register_forward_hook(lambda module, inputs, output: setattr(self, "features", output))

    def step(self, batch: Any, number: int) -> Tensor | None:
        """One update; coefficients [shared tensors, T], None between balanced steps."""
        self.stream.step = number
        labels, weights = self.targets(batch.labels, batch.weights)
        totals = weights.sum(dim=0)
        terms, parts = self.losses(self.model(batch), labels, weights, totals)
        names, every = list(self.parameters), getattr(self.config.balancing, "every", 1)
        gradients: list[dict[str, Tensor]] = []
        at_features = []
        for term in terms:
            found = torch.autograd.grad(
                term, [*self.parameters.values(), self.features], retain_graph=True, allow_unused=True
            )
            pairs = zip(names, found, strict=False)
            gradients.append({n: torch.zeros_like(self.parameters[n]) if g is None else g for n, g in pairs})
            at_features.append(found[-1])
        if number % every:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    factors = self.kept if name in self.shared else [1.0] * len(terms)
                    for factor, gradient in zip(factors, gradients, strict=True):
                        parameter -= RATE * factor * gradient[name]
            return None
        compared = {name: [gradient[name] for gradient in gradients] for name in self.shared}
        if self.at_features:
            compared.update(self.of_features(at_features))
        grams = [
            [[float((a.double() * b.double()).sum()) for a in parts] for b in parts] for parts in compared.values()
        ]
        report = self.balancing.step(torch.tensor(grams, dtype=torch.float64), parts, number)
        # The mean of the tensors' coefficients, weighted by the squared norms of the task's gradients.
        self.kept = [
            sum(float(c[t]) * gram[t][t] for c, gram in zip(report.coefficients, grams, strict=True))
            / sum(gram[t][t] for gram in grams)
            for t in range(len(terms))
        ]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                factors = [1.0] * len(terms)
                if name in self.shared:
                    factors = report.coefficients[self.shared.index(name)].tolist()
                for factor, gradient in zip(factors, gradients, strict=True):
                    parameter -= RATE * factor * gradient[name]
            if self.balancing.needs_losses_after:
                self.balancing.after(self.losses.parts(self.model(batch), labels, weights, totals))
        return report.coefficients

    def of_features(self, gradients: list[Tensor]) -> dict[str, list[Tensor]]:
        """The tasks' gradients of what came from each table."""
        columns: dict[str, list[int]] = {}
        start = 0
        for table in self.model.lookup.table_set.configs:
            width = table.embedding_dim * len(table.feature_names)
            columns[f"lookup.tables.embedding_bags.{table.name}.weight"] = list(range(start, start + width))
            start += width
        return {name: [gradient[:, own] for gradient in gradients] for name, own in columns.items()}


def literal(rank: int, folder: Path, methods: list[str]) -> dict[str, tuple[Any, Any]]:
    """Weights by name, and the coefficients of every step, with each method."""
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.training.loaders import make_loader

    results = {}
    for method in methods:
        config = configuration(folder, METHODS[method], {})
        run = Literal(config)
        loader = make_loader(config, open_dataset(str(folder)), "train", Process(0, 1, torch.device("cpu")))
        with loader.epoch(0, 0) as batches:
            found = [run.step(batch, number) for number, batch in enumerate(itertools.islice(batches, STEPS))]
            coefficients = [rows for rows in found if rows is not None]
        weights = {name.split(".")[-2] if "bags" in name else name: p for name, p in run.parameters.items()}
        order = [name.split(".")[-2] if "bags" in name else name for name in run.shared]
        results[method] = (
            {name: weight.detach() for name, weight in weights.items()},
            [dict(zip(order, rows, strict=True)) for rows in coefficients],
        )
    return results


def sharded(
    rank: int, folder: Path, methods: list[str], plans: dict[str, dict[str, Any]]
) -> dict[tuple[str, str], tuple[Any, Any]]:
    """The same in the trainer, under each plan."""
    import torch.distributed as dist

    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.training.build import build_model, build_optimizers, build_step
    from dlrm_mtl.training.loaders import make_loader
    from tests.embeddings.two_phase_model import whole

    process, results = Process(rank, dist.get_world_size(), torch.device("cpu")), {}
    dataset = open_dataset(str(folder))
    for method, (name, plan) in itertools.product(methods, plans.items()):
        config = configuration(folder, METHODS[method], plan)
        model = build_model(config, dataset.spec, process)
        step = build_step(config, process, model, build_optimizers(config, model, STEPS))
        assert model.balancing is not None
        reports: list[Any] = []
        inner = model.balancing.methods.step

        def record(*arguments: Any, inner: Any = inner, reports: list[Any] = reports) -> Any:
            reports.append(inner(*arguments))
            return reports[-1]

        model.balancing.methods.step = record  # type: ignore[method-assign]
        with make_loader(config, dataset, "train", process).epoch(0, 0) as batches:
            for number, batch in enumerate(itertools.islice(batches, STEPS)):
                step([batch], number, 0)
        tensors = [info.name for info in model.balancing.methods.tensors]
        order = [name.rpartition(".")[2] if name.startswith("lookup.tables") else name for name in tensors]
        weights = {name: whole(weight) for name, weight in model.table_weights().items()}
        weights |= {name: parameter.detach() for name, parameter in model.dense_parameters().items()}
        coefficients = [dict(zip(order, report.coefficients, strict=True)) for report in reports]
        results[method, name] = (weights, coefficients)
    return results


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=STEPS * 64)


@pytest.fixture(scope="module")
def expected(dataset: Path) -> dict[str, tuple[Any, Any]]:
    return run_processes(1, literal, dataset, list(METHODS))[0]


MIXED = ["mixture"]


@pytest.mark.parametrize(
    ("world_size", "methods", "plans"),
    [
        (1, ["metabalance", "pcgrad"], MIXED),
        (2, list(METHODS), MIXED),
        (4, ["two stages", "at the features"], None),
        pytest.param(1, list(METHODS), None, marks=pytest.mark.slow),
        pytest.param(2, list(METHODS), None, marks=pytest.mark.slow),
        pytest.param(4, list(METHODS), None, marks=pytest.mark.slow),
    ],
)
def test_weights_and_coefficients_are_the_literal_ones(
    dataset: Path,
    expected: dict[str, tuple[Any, Any]],
    world_size: int,
    methods: list[str],
    plans: list[str] | None,
) -> None:
    chosen = {name: plan for name, plan in shardings(world_size).items() if plans is None or name in plans}
    results = run_processes(world_size, sharded, dataset, methods, chosen, timeout=1200.0)[0]
    for (method, plan), (weights, coefficients) in results.items():
        wanted_weights, wanted_coefficients = expected[method]
        what = f"{method}, {plan}, {world_size} processes"
        for ours, theirs in zip(coefficients, wanted_coefficients, strict=True):
            for tensor, factors in theirs.items():
                np.testing.assert_allclose(ours[tensor], factors, rtol=1e-6, atol=1e-6, err_msg=f"{what}: {tensor}")
        for tensor, weight in wanted_weights.items():
            np.testing.assert_allclose(weights[tensor], weight, rtol=1e-6, atol=1e-6, err_msg=f"{what}: {tensor}")


def test_methods_change_something(expected: dict[str, tuple[Any, Any]]) -> None:
    for method, (_, coefficients) in expected.items():
        factors = torch.stack([factor for step in coefficients for factor in step.values()])
        assert (factors - 1.0).abs().max() > 1e-3, f"{method} leaves the gradients as they are"


def resumed(rank: int, folder: Path, checkpoints: Path, methods: list[str]) -> dict[str, bool]:
    """True if two steps, a checkpoint and two more in another model give the bits of four steps in one go."""
    import torch.distributed as dist

    from dlrm_mtl.checkpoint.checkpoints import Checkpoints
    from dlrm_mtl.checkpoint.state import RunState
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.storage.run_store import LocalStore
    from dlrm_mtl.training.build import build_model, build_optimizers, build_step
    from dlrm_mtl.training.loaders import make_loader
    from dlrm_mtl.training.tensors import RunTensors

    process, result = Process(rank, dist.get_world_size(), torch.device("cpu")), {}
    dataset = open_dataset(str(folder))
    for method in methods:
        config = configuration(folder, METHODS[method], {"default": "row_wise"})
        states = []
        for stop in (None, 2):
            saved = Checkpoints(LocalStore(checkpoints / method))
            model = build_model(config, dataset.spec, process)
            optimizers = build_optimizers(config, model, STEPS)
            step = build_step(config, process, model, optimizers)
            with make_loader(config, dataset, "train", process).epoch(0, 0) as batches:
                for number, batch in enumerate(itertools.islice(batches, STEPS)):
                    if number == stop:
                        saved.save(RunTensors(model, optimizers), RunState(step=number))
                        model = build_model(config, dataset.spec, process)
                        optimizers = build_optimizers(config, model, STEPS)
                        saved.load("latest", RunTensors(model, optimizers))
                        step = build_step(config, process, model, optimizers)
                    step([batch], number, 0)
            tables = {name: weight.local_shards()[0].tensor for name, weight in model.table_weights().items()}
            states.append(tables | model.dense_weights())
        whole, parted = states
        result[method] = all(torch.equal(value, parted[name]) for name, value in whole.items())
    return result


def test_averages_and_learned_weights_are_in_the_checkpoint(dataset: Path, tmp_path: Path) -> None:
    methods = ["metabalance", "gradvac", "gradnorm", "famo"]
    for result in run_processes(2, resumed, dataset, tmp_path, methods):
        assert result == dict.fromkeys(methods, True)


def poisoned(rank: int, folder: Path) -> Any:
    """One task's labels are spoiled on one process; what is said of it, and whether the state stays."""
    import torch.distributed as dist

    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.training.build import build_model, build_optimizers, build_step
    from dlrm_mtl.training.loaders import make_loader

    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    dataset = open_dataset(str(folder))
    config = configuration(folder, METHODS["gradnorm"], {"default": "row_wise"})
    model = build_model(config, dataset.spec, process)
    step = build_step(config, process, model, build_optimizers(config, model, STEPS))
    skipped = []
    with make_loader(config, dataset, "train", process).epoch(0, 0) as batches:
        for number, batch in enumerate(itertools.islice(batches, 3)):
            if number == 1 and rank == 0:
                batch.labels[0, 1] = float("inf")
            before = {key: value.clone() for key, value in model.dense_weights().items()}
            _, report = step([batch], number, 0)
            unchanged = all(torch.equal(value, before[key]) for key, value in model.dense_weights().items())
            skipped.append((report.skipped, step.not_finite, unchanged))
    return skipped


def test_a_task_whose_gradient_is_not_finite_is_named_and_nothing_changes(dataset: Path) -> None:
    for outcome in run_processes(2, poisoned, dataset):
        assert outcome == [(False, [], False), (True, ["buy"], True), (False, [], False)]
