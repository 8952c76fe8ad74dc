"""A training step with gradient balancing beside one without, for 2, 4 and 8 tasks: forward, backward and update.

Two models on random batches, one process: `dense` spends most of its time in a mixture of experts, `tables` in lookups and
updates. Besides every method at parameter level, there are MetaBalance at the level of the features, MetaBalance every fourth
step, MetaBalance with all tasks in one batched backward pass, and, as the cost without separate gradients of tables, one full
backward pass per task. All variants are interleaved on the same batches; ratios are taken within a turn against the step
without balancing. Of a variant that balances every fourth step a turn takes four steps, and averages them.

    python -m benchmarks balancing [--quick]
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process, process_group
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.training.balanced_step import BalancedStep
from dlrm_mtl.training.build import build_model, build_optimizers, build_step

TARGET = 2.0
ROWS = 2048
MODELS: dict[str, dict[str, Any]] = {
    "dense": {
        "features": 8,
        "ids": 1,
        "dim": 32,
        "model": {
            "interaction": {"name": "dcnv2", "layers": 1},
            "multitask": {"name": "mmoe", "experts": 8, "layers": [256, 128]},
            "tower": {"layers": [64]},
        },
    },
    "tables": {
        "features": 26,
        "ids": 10,
        "dim": 64,
        "model": {
            "interaction": {"name": "concat"},
            "multitask": {"name": "shared_bottom", "layers": [128]},
            "tower": {"layers": [32]},
        },
    },
}
"""Tables hold 100,000 rows each."""
TARGETED = {"metabalance", "surgery", "similarity"}
METHODS = [
    "metabalance",
    "surgery",
    "pcgrad",
    "gradvac",
    "cagrad",
    "mgda",
    "imtl_g",
    "aligned_mtl",
    "nash_mtl",
    "gradnorm",
    "famo",
]
VOCABULARY = 100_000
EVERY = 4
"""Steps from one balanced step to the next, in the variants that keep coefficients in between."""

Step = Callable[[Batch, int], object]


def configuration(model: dict[str, Any], tasks: int, balancing: dict[str, Any]) -> tuple[RunConfig, DatasetSpec]:
    """A run that is never started, and its data set."""
    names = [f"feature_{number}" for number in range(model["features"])]
    spec = DatasetSpec.model_validate(
        {
            "name": "random",
            "splits": {"train": {"folder": "train"}},
            "features": [{"name": name, "kind": "sparse", "vocabulary_size": VOCABULARY} for name in names],
            "labels": [{"name": f"task_{number}"} for number in range(tasks)],
        }
    )
    config = RunConfig.model_validate(
        {
            "name": "balancing",
            "data": {"path": "none", "batch_size": ROWS, "lanes": 1},
            "tasks": [{"name": f"task_{number}"} for number in range(tasks)],
            "model": {"embeddings": {"dim": model["dim"], "pooling": "sum"}, **model["model"]},
            "balancing": balancing,
        }
    )
    return config, spec


def batches(model: dict[str, Any], tasks: int, count: int) -> list[Batch]:
    """Random batches."""
    features, ids = model["features"], model["ids"]
    result = []
    for _ in range(count):
        sparse = KeyedJaggedTensor(
            keys=[f"feature_{number}" for number in range(features)],
            values=torch.randint(VOCABULARY, (features * ROWS * ids,)),
            lengths=torch.full((features * ROWS,), ids, dtype=torch.int32),
        )
        labels = torch.randint(2, (ROWS, tasks)).float()
        result.append(Batch(sparse, torch.empty(ROWS, 0), labels, torch.ones(ROWS, tasks)))
    return result


def stepper(model: dict[str, Any], tasks: int, balancing: dict[str, Any], process: Process) -> Step:
    """A training step of the package."""
    config, spec = configuration(model, tasks, balancing)
    built = build_model(config, spec, process)
    built.module.train()
    step = build_step(config, process, built, build_optimizers(config, built, 1000))
    return lambda batch, number: step([batch], number, 0)


def one_backward_per_task(model: dict[str, Any], tasks: int, process: Process) -> Step:
    """A full backward pass, tables included, for each task; the gradients are summed."""
    config, spec = configuration(model, tasks, {"name": "none"})
    built = build_model(config, spec, process)
    built.module.train()
    optimizers = build_optimizers(config, built, 1000)
    step = build_step(config, process, built, optimizers)

    def run(batch: Batch, number: int) -> None:
        optimizers.set_learning_rate(number)
        optimizers.zero_grad()
        labels, weights = step.targets.sampled(batch.labels, batch.weights, built.random)
        terms, _ = step.losses(built.ranker(batch), labels, weights, weights.sum(dim=0))
        for task, term in enumerate(terms):
            term.backward(retain_graph=task + 1 < tasks)  # type: ignore[no-untyped-call]
        optimizers.step()

    return run


def one_batched_backward(model: dict[str, Any], tasks: int, process: Process) -> Step:
    """MetaBalance with the dense part differentiated for all tasks at once, by ``torch.func.vmap``."""
    config, spec = configuration(model, tasks, {"name": "metabalance", "target": "task_0"})
    built = build_model(config, spec, process)
    built.module.train()
    step = build_step(config, process, built, build_optimizers(config, built, 1000))
    assert isinstance(step, BalancedStep)

    def gradients(losses: list[Tensor]) -> list[Tensor]:
        assert step._features is not None
        parameters = list(step.parameters.values())
        cotangents, *found = torch.autograd.grad(
            torch.stack(losses),
            [step._features, *parameters],
            torch.eye(len(losses)),
            is_grads_batched=True,
            allow_unused=True,
        )
        of_unused = [parameter.new_zeros(len(losses), parameter.numel()) for parameter in parameters]
        pairs = zip(found, of_unused, strict=True)
        step._flat = torch.cat([zeros if each is None else each.flatten(1) for each, zeros in pairs], dim=1)
        return list(cotangents.unbind())

    step._gradients = gradients  # type: ignore[method-assign]
    return lambda batch, number: step([batch], number, 0)


def run(quick: bool) -> dict[str, Any]:
    """Measure, print a table, and return the figures."""
    turns = 5 if quick else 15
    methods = ["metabalance"] if quick else METHODS
    before = torch.get_num_threads()
    threads = min(2, os.cpu_count() or 1)
    results = []
    torch.set_num_threads(threads)
    try:
        with process_group() as process:
            for name, model in MODELS.items():
                for tasks in (2, 4) if quick else (2, 4, 8):
                    results += _measure(name, model, tasks, methods, turns, process)
    finally:
        torch.set_num_threads(before)
    kept = f"metabalance, every {EVERY} steps"
    worst = max(row["ratio"] for row in results if row["method"] == kept and row["tasks"] == 4)
    print(f"\nMetaBalance every {EVERY} steps with 4 tasks: at most {worst:.2f} of a step without (target: {TARGET})")
    return {"target": TARGET, "worst": worst, "turns": turns, "threads": threads, "quick": quick, "cases": results}


def _measure(
    name: str, model: dict[str, Any], tasks: int, methods: list[str], turns: int, process: Process
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    target = {"target": "task_0"}
    steps: dict[str, Step] = {"none": stepper(model, tasks, {"name": "none"}, process)}
    for method in methods:
        options = {"name": method, **(target if method in TARGETED else {})}
        steps[method] = stepper(model, tasks, options, process)
    features = {"name": "metabalance", "level": "representation", **target}
    steps["metabalance at the features"] = stepper(model, tasks, features, process)
    for name_of, options in (("", {}), (" at the features", {"level": "representation"})):
        often = {"name": "metabalance", "every": EVERY, **target, **options}
        steps[f"metabalance{name_of}, every {EVERY} steps"] = stepper(model, tasks, often, process)
    steps["metabalance, tasks batched"] = one_batched_backward(model, tasks, process)
    steps["one backward per task"] = one_backward_per_task(model, tasks, process)
    data = batches(model, tasks, 4)
    seconds: dict[str, list[float]] = {contestant: [] for contestant in steps}
    names = list(steps)
    for turn in range(turns + 2):
        shift = turn % len(names)
        for contestant in names[shift:] + names[:shift]:
            taken = EVERY if contestant.endswith("steps") else 1
            start = time.perf_counter()
            for number in range(taken):
                steps[contestant](data[turn % len(data)], turn * taken + number)
            elapsed = (time.perf_counter() - start) / taken
            if turn >= 2:
                seconds[contestant].append(elapsed)
    print(f"\n{name}, {tasks} tasks, {ROWS} rows, {torch.get_num_threads()} threads")
    print(f"  {'':30}{'median ms':>10}{'of none':>9}  middle half")
    rows = []
    for contestant, values in seconds.items():
        ratios = sorted(own / base for own, base in zip(values, seconds["none"], strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(values) * 1e3
        print(f"  {contestant:30}{median:10.1f}{middle:9.2f}  {low:.2f} to {high:.2f}")
        row = {"model": name, "tasks": tasks, "method": contestant, "median_ms": median, "ratio": middle}
        rows.append({**row, "ratio_middle_half": [low, high]})
    return rows
