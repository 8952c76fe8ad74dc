"""Do MMoE, PLE and AdaTT beat a shared bottom where tasks conflict, and keep up where they agree?

Two regression tasks as in the MMoE paper (Ma et al., KDD 2018, section 3.2): rows x [50] are standard normal, and
y_t = w_t x + sum_i sin(i w_t x + b_i) + noise, where w_1 and w_2 have length 1 and a cosine that is set. With cosine 1 the
tasks are one; with 0 they need different directions of x; with -1 the same direction, with opposite sign. Every step sees
new rows, so nothing can be overfitted, and the number of steps is given: what is compared is how far each gets.

All architectures have representations of the same width and the same towers; the width of their first layers is chosen so
that they have equally many parameters. The learning rate of each is the one of a common grid with the lowest error
(geometric mean over cosines and seeds) on seeds of their own. The error is that on new rows, without noise in the targets,
as a share of the targets' variance, mean of the tasks. All architectures see the same tasks and rows for the same seed, so
ratios to the shared bottom are taken seed by seed.

    python -m studies task_relatedness --json relatedness.json --plot docs/figures/task_relatedness.svg
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from dlrm_mtl import AdaTTConfig, AdaTTSpConfig, MMoEConfig, PLEConfig, SharedBottomConfig, mean_and_interval
from dlrm_mtl.models.blocks import ParallelLinear, ParallelMLP, StackConfig
from dlrm_mtl.models.multitask import MultitaskConfig, build_multitask

INPUTS, TASKS, WIDTH, TOWER = 50, 2, 16, 8
SINES, NOISE = 3, 0.1

ARCHITECTURES: dict[str, Callable[[int], MultitaskConfig]] = {
    # name -> configuration from the width of the first layer; six experts where there are any
    "shared_bottom": lambda width: SharedBottomConfig(layers=[width, WIDTH]),
    "mmoe": lambda width: MMoEConfig(experts=6, layers=[width, WIDTH]),
    "ple": lambda width: PLEConfig(task_experts=2, shared_experts=2, levels=[[width], [WIDTH]]),
    "adatt_sp": lambda width: AdaTTSpConfig(task_experts=3, levels=[[width], [WIDTH]]),
    "adatt": lambda width: AdaTTConfig(task_experts=2, shared_experts=2, levels=[[width], [WIDTH]]),
}


@dataclass(frozen=True)
class Size:
    """Size of the computation."""

    seeds: int = 10
    tuning_seeds: int = 2
    cosines: tuple[float, ...] = (-1.0, 0.0, 0.5, 1.0)
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    parameters: int = 8000
    steps: int = 1500
    rows: int = 128
    held_out: int = 4000


QUICK = Size(seeds=2, tuning_seeds=1, cosines=(0.0, 1.0), rates=(3e-3, 1e-2), parameters=5000, steps=30, held_out=500)


class Ranker(nn.Module):
    """An architecture alone, with a tower and an output per task: [B, D] -> [B, T]."""

    def __init__(self, config: MultitaskConfig) -> None:
        super().__init__()
        self.shared = build_multitask(config, INPUTS, TASKS)
        self.towers = ParallelMLP(TASKS, self.shared.out_features, StackConfig(layers=[TOWER]))
        self.heads = ParallelLinear(TASKS, TOWER, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict both tasks for ``x`` [B, D]."""
        outputs: Tensor = self.heads(self.towers(self.shared(x)))
        return outputs.squeeze(-1)


class Problems:
    """Pairs of tasks, one for each of C cosines and S seeds, N = C S in all, and endless rows for each.

    A pair is determined by its cosine and its seed, and so are its rows; those of one seed are the same for all cosines.
    """

    def __init__(self, cosines: Sequence[float], seeds: Sequence[int]) -> None:
        self.count = len(cosines)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        draws = [torch.linalg.qr(torch.randn(INPUTS, 2, generator=g)).Q.unbind(1) for g in self.generators]
        pairs = [torch.stack([u, c * u + math.sqrt(1 - c**2) * v], dim=1) for c in cosines for u, v in draws]
        self.directions = torch.stack(pairs)  # [N, D, T]
        self.frequencies = torch.arange(1.0, SINES + 1)
        phases = torch.stack([2 * math.pi * torch.rand(SINES, generator=g) for g in self.generators])
        self.phases = phases.repeat(self.count, 1)[:, None, None]  # [N, 1, 1, sines]

    def rows(self, rows: int, noise: float = NOISE) -> tuple[Tensor, Tensor]:
        """The next rows x [N, B, D] and their targets [N, B, T]."""
        x = torch.stack([torch.randn(rows, INPUTS, generator=g) for g in self.generators]).repeat(self.count, 1, 1)
        errors = torch.stack([torch.randn(rows, TASKS, generator=g) for g in self.generators]).repeat(self.count, 1, 1)
        along = x @ self.directions
        sines = torch.sin(along.unsqueeze(-1) * self.frequencies + self.phases).sum(-1)
        return x, along + sines + noise * errors


@cache
def config_of(architecture: str, parameters: int) -> tuple[MultitaskConfig, int]:
    """The configuration whose model has the nearest number of parameters, and that number."""
    sizes = {}
    with torch.device("meta"):
        for width in range(4, 401):
            config = ARCHITECTURES[architecture](width)
            sizes[width] = sum(parameter.numel() for parameter in Ranker(config).parameters())
            if sizes[width] > parameters:
                break
    width = min(sizes, key=lambda width: abs(sizes[width] - parameters))
    return ARCHITECTURES[architecture](width), sizes[width]


def train(architecture: str, rate: float, seeds: Sequence[int], size: Size) -> dict[float, list[float]]:
    """Train a model for every cosine and seed, all at once, and return their errors: by cosine, in the order of ``seeds``."""
    problems = Problems(size.cosines, seeds)
    config = config_of(architecture, size.parameters)[0]
    models = []
    for seed in list(seeds) * len(size.cosines):
        torch.manual_seed(seed)
        models.append(Ranker(config))
    weights, _ = stack_module_state(models)
    predict = vmap(lambda own, x: functional_call(models[0], own, (x,)))
    # Adam and the sum of the losses treat every model independently.
    optimizer = torch.optim.Adam(weights.values(), lr=rate, fused=True)
    for _ in range(size.steps):
        x, targets = problems.rows(size.rows)
        loss = (predict(weights, x) - targets).square().mean((1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, targets = problems.rows(size.held_out, noise=0.0)
        errors = ((predict(weights, x) - targets).square().mean(1) / targets.var(1)).mean(1)
    return dict(zip(size.cosines, errors.view(-1, len(seeds)).tolist(), strict=True))


def tune_and_train(architecture: str, size: Size) -> tuple[dict[float, float], dict[float, list[float]]]:
    """Errors of every rate on the tuning seeds, and errors by cosine and seed with the best of them."""
    torch.set_num_threads(1)
    seeds = range(1000, 1000 + size.tuning_seeds)
    tuning = {}
    for rate in size.rates:
        errors = train(architecture, rate, seeds, size)
        tuning[rate] = statistics.geometric_mean(itertools.chain(*errors.values()))
    return tuning, train(architecture, min(tuning, key=lambda rate: tuning[rate]), range(size.seeds), size)


def study(size: Size, workers: int) -> dict[str, Any]:
    """Choose rates, train with them, and summarise."""
    start = time.monotonic()
    if workers > 1:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(partial(tune_and_train, size=size), ARCHITECTURES))
    else:
        found = [tune_and_train(name, size) for name in ARCHITECTURES]
    tuning = {name: errors for name, (errors, _) in zip(ARCHITECTURES, found, strict=True)}
    errors = {name: errors for name, (_, errors) in zip(ARCHITECTURES, found, strict=True)}
    cases = []
    for cosine, name in itertools.product(size.cosines, ARCHITECTURES):
        own, base = errors[name][cosine], errors["shared_bottom"][cosine]
        mean, half = mean_and_interval(own)
        centre, spread = mean_and_interval([math.log(a / b) for a, b in zip(own, base, strict=True)])
        ratio = {"ratio": math.exp(centre), "low": math.exp(centre - spread), "high": math.exp(centre + spread)}
        cases.append({"cosine": cosine, "architecture": name, "errors": own, "mean": mean, "half": half, **ratio})
    return {
        "size": asdict(size),
        "parameters": {name: config_of(name, size.parameters)[1] for name in ARCHITECTURES},
        "tuning": tuning,
        "rates": {name: min(tried, key=lambda rate: tried[rate]) for name, tried in tuning.items()},
        "cases": cases,
        "seconds": time.monotonic() - start,
    }


def show(results: dict[str, Any]) -> None:
    """Print the figures."""
    print(f"\n{'':16}{'parameters':>12}{'rate':>8}   error of every rate on the tuning seeds")
    for name, tuning in results["tuning"].items():
        tried = "  ".join(f"{rate:g}: {error:.4f}" for rate, error in tuning.items())
        print(f"{name:16}{results['parameters'][name]:>12,}{results['rates'][name]:>8g}   {tried}")
    print(f"\n{'cosine':>6}  {'':16}{'error':>8} {'+-':>7}{'ratio to shared_bottom':>26}")
    for case in results["cases"]:
        ratio = f"{case['ratio']:.2f} ({case['low']:.2f} to {case['high']:.2f})"
        verdict = "lower" if case["high"] < 1 else "higher" if case["low"] > 1 else "not told apart"
        if case["architecture"] == "shared_bottom":
            ratio = verdict = ""
        print(
            f"{case['cosine']:>6g}  {case['architecture']:16}{case['mean']:8.4f} {case['half']:7.4f}{ratio:>26}  {verdict}"
        )
    print(f"\n{results['seconds']:.0f} seconds")


def plot(results: dict[str, Any]) -> str:
    """Errors and ratios over the cosine, as SVG."""
    from matplotlib.ticker import LogLocator

    from dlrm_mtl.reports.plots import COLOURS
    from studies.plots import drawing

    cosines = results["size"]["cosines"]
    with drawing(8.6, 3.2) as (figure, svg):
        left, right = figure.subplots(1, 2)
        for number, name in enumerate(ARCHITECTURES):
            cases = [case for case in results["cases"] if case["architecture"] == name]
            places = [place + 0.13 * (number - 2) for place in range(len(cosines))]
            form = {"fmt": "o", "markersize": 4, "linewidth": 1.2, "color": COLOURS[number], "label": name}
            logs = [mean_and_interval([math.log(error) for error in case["errors"]]) for case in cases]
            low, high = ([math.exp(mean + sign * half) for mean, half in logs] for sign in (-1, 1))
            _points(left, places, [math.exp(mean) for mean, _ in logs], low, high, form)
            if name != "shared_bottom":
                low, high = ([case[end] for case in cases] for end in ("low", "high"))
                _points(right, places, [case["ratio"] for case in cases], low, high, form)
        right.axhline(1, color=COLOURS[0], linewidth=1)
        for axes, title in ((left, "Error"), (right, "Error over that of shared_bottom")):
            axes.set_title(title)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
            axes.set_xticks(range(len(cosines)), [f"{cosine:g}" for cosine in cosines])
            axes.grid(visible=False, axis="x")
            axes.set_xlabel("cosine of the tasks' directions")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        return svg()


def _points(
    axes: Any, x: list[float], y: list[float], low: list[float], high: list[float], form: dict[str, Any]
) -> None:
    below = [value - end for value, end in zip(y, low, strict=True)]
    above = [end - value for value, end in zip(y, high, strict=True)]
    axes.errorbar(x, y, yerr=[below, above], **form)


def main(given: Sequence[str]) -> None:
    """Run the study from the command line."""
    parser = argparse.ArgumentParser(
        "python -m studies task_relatedness",
        description="Compare multitask architectures on two tasks of set relatedness.",
    )
    parser.add_argument("--quick", action="store_true", help="seconds: to see that it works, not what comes out")
    parser.add_argument("--seeds", type=int, help="models per architecture and cosine, 2 or more; default: 10")
    cores = min(os.cpu_count() or 1, len(ARCHITECTURES))
    parser.add_argument("--workers", type=int, default=cores, help=f"processes; default here: {cores}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to write the plot, as SVG")
    arguments = parser.parse_args(given)
    size = QUICK if arguments.quick else Size()
    if arguments.seeds is not None:
        if not 2 <= arguments.seeds <= 1000:
            parser.error(f"--seeds {arguments.seeds}: an interval needs 2 seeds at least, and 1000 are tuned on.")
        size = Size(**{**asdict(size), "seeds": arguments.seeds})
    results = study(size, arguments.workers)
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.plot:
        arguments.plot.write_text(plot(results))
