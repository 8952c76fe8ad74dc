"""A step of ClippyAdagrad beside torch.optim.Adagrad on the CPU, on 50 layers with 20 million parameters.

The target is a ratio to ``torch.optim.Adagrad(foreach=True)`` of at most 1.5. All optimizers update the same tensors, in
interleaved steps, so that other load on the machine affects all of them; ratios are taken within a turn.

    python -m benchmarks dense-optimizer
"""

from __future__ import annotations

import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dlrm_mtl.optim.clippy_adagrad import ClippyAdagrad

TARGET = 1.5
BASELINE = "torch Adagrad foreach"
LAYOUTS = {
    "50 layers of 632 x 633 (20M parameters)": [(632, 633)] * 50,
    "200 vectors of 64 (biases, norms)": [(64,)] * 200,
}
REGIMES = {
    # learning rate, size of gradients: bounds far away, so that most blocks need no ratio; and a factor below 1 everywhere
    "nothing near its bound": (0.02, 0.01),
    "every layer clipped": (0.5, 1.0),
}


def run(quick: bool) -> dict[str, Any]:
    """Measure all cases, print a table, and return the figures."""
    turns = 7 if quick else 25
    results = []
    threads_before = torch.get_num_threads()
    try:
        for threads in sorted({1, min(2, os.cpu_count() or 1)}):
            torch.set_num_threads(threads)
            for layout, shapes in LAYOUTS.items():
                if quick and len(shapes) == 50:
                    shapes = shapes[:10]
                for regime, (lr, size) in REGIMES.items():
                    results.append(
                        {"threads": threads, "layout": layout, "regime": regime, **_measure(shapes, lr, size, turns)}
                    )
                    _show(results[-1])
    finally:
        torch.set_num_threads(threads_before)
    worst = max(row["optimizers"]["ClippyAdagrad"]["ratio"] for row in results if row["layout"] == next(iter(LAYOUTS)))
    print(f"\nLargest ratio of ClippyAdagrad on 50 layers: {worst:.2f} (target: at most {TARGET})")
    return {"target_ratio": TARGET, "largest_ratio": worst, "turns": turns, "quick": quick, "cases": results}


def _measure(shapes: list[tuple[int, ...]], lr: float, size: float, turns: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(shape[0])) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * size
    steps = _optimizers(parameters, lr)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(turns + 2):
        shift = turn % len(names)  # no optimizer always follows the same one
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            steps[name]()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "optimizers": {name: _figures(values, seconds[BASELINE]) for name, values in seconds.items()},
    }


def _optimizers(parameters: list[nn.Parameter], lr: float) -> dict[str, Callable[[], Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = ClippyAdagrad(parameters, lr)
        return {
            BASELINE: _adagrad(parameters, lr, foreach=True),
            "torch Adagrad single": _adagrad(parameters, lr, foreach=False),
            "torch Adagrad fused": _adagrad(parameters, lr, fused=True),
            "ClippyAdagrad": measured.step,
            "ClippyAdagrad foreach": ClippyAdagrad(parameters, lr, foreach=True).step,
        }


def _adagrad(parameters: list[nn.Parameter], lr: float, **form: bool) -> Callable[[], Any]:
    return torch.optim.Adagrad(parameters, lr=lr, initial_accumulator_value=0.1, **form).step


def _figures(seconds: list[float], baseline: list[float]) -> dict[str, float]:
    ratios = sorted(own / base for own, base in zip(seconds, baseline, strict=True))
    quarter = len(ratios) // 4
    return {
        "median_ms": statistics.median(seconds) * 1e3,
        "fastest_ms": min(seconds) * 1e3,
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[quarter],
        "ratio_high": ratios[-1 - quarter],
    }


def _show(row: dict[str, Any]) -> None:
    print(f"\n{row['layout']}, {row['regime']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}")
    print(f"  {'':24}{'median ms':>11}{'fastest ms':>12}{'ratio':>8}  middle half of ratios")
    for name, figures in row["optimizers"].items():
        print(
            f"  {name:24}{figures['median_ms']:11.2f}{figures['fastest_ms']:12.2f}{figures['ratio']:8.2f}"
            f"  {figures['ratio_low']:.2f} to {figures['ratio_high']:.2f}"
        )


if __name__ == "__main__":
    run(quick=False)
