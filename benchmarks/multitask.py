"""Multitask architectures beside plain loops over experts and gates: forward and backward on the CPU.

Eight experts of 256 and 128, four tasks, batch of 4,096, input of width 256. The loops follow public libraries: one
``nn.Sequential`` per expert, one ``nn.Linear`` per gate, outputs stacked and mixed gate by gate. Both forms have the same
parameters and are interleaved, so that other load on the machine affects both; ratios are taken within a turn.

The third variant is a bound on the speed of any form: only the matrix products of the batched form, forward and backward,
in its shapes and layouts, into allocated memory.

    python -m benchmarks multitask
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dlrm_mtl.models.multitask import MultitaskConfig, build_multitask
from dlrm_mtl.models.multitask.adatt import AdaTTConfig, AdaTTSpConfig
from dlrm_mtl.models.multitask.aitm import AITMConfig
from dlrm_mtl.models.multitask.cross_stitch import CrossStitchConfig
from dlrm_mtl.models.multitask.mmoe import MMoEConfig
from dlrm_mtl.models.multitask.multi_level_mmoe import MultiLevelMMoEConfig
from dlrm_mtl.models.multitask.omoe import OMoEConfig
from dlrm_mtl.models.multitask.ple import PLEConfig
from dlrm_mtl.models.multitask.shared_bottom import SharedBottomConfig
from dlrm_mtl.models.multitask.single_task import SingleTaskConfig

TARGET = 1.5
WIDTH, TASKS, ROWS = 256, 4, 4096
STACK, LEVELS = [256, 128], [[256], [128]]


class LoopLevel(nn.Module):
    """Experts and gates one by one; gate g mixes the experts in sees[g]. Inputs and outputs are lists of [B, d]."""

    def __init__(
        self,
        width: int,
        gate_width: int,
        layers: list[int],
        slots: list[int],
        sees: list[list[int]],
        native: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.slots, self.sees = slots, sees
        self.experts = nn.ModuleList(_sequential(width, layers) for _ in slots)
        self.gates = nn.ModuleList(nn.Linear(gate_width, len(seen)) for seen in sees)
        self.native = nn.ParameterList(nn.Parameter(torch.rand(count)) for count in native)

    def forward(self, inputs: list[Tensor], gate_inputs: list[Tensor]) -> list[Tensor]:
        outputs = [expert(inputs[slot]) for expert, slot in zip(self.experts, self.slots, strict=True)]
        fused = []
        for g, (gate, seen) in enumerate(zip(self.gates, self.sees, strict=True)):
            weights = torch.softmax(gate(gate_inputs[g]), dim=1)
            stacked = torch.stack([outputs[e] for e in seen], dim=1)
            mixed = torch.bmm(weights.unsqueeze(1), stacked).squeeze(1)
            if len(self.native):
                own = [output for output, slot in zip(outputs, self.slots, strict=True) if slot == g]
                mixed = mixed + sum(v * output for v, output in zip(self.native[g], own, strict=True))
            fused.append(mixed)
        return fused


class Loop(nn.Module):
    """Levels of loops; the gates read the level's input, or always the model's input."""

    def __init__(self, levels: list[LoopLevel], raw_gates: bool = False) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.raw_gates = raw_gates

    def forward(self, x: Tensor) -> Tensor:
        slots = [x] * 64
        for level in self.levels:
            slots = level(slots, [x] * 64 if self.raw_gates else slots)
        return torch.stack((slots * TASKS if len(slots) == 1 else slots)[:TASKS], dim=1)


class LoopStitch(nn.Module):
    """Cross-stitch, one stack at a time."""

    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH, *(layers[-1] for layers in LEVELS)]
        self.stacks = nn.ModuleList(
            nn.ModuleList(_sequential(width, layers) for _ in range(TASKS))
            for width, layers in zip(widths, LEVELS, strict=False)
        )
        self.stitches = nn.ModuleList(nn.Linear(TASKS, TASKS, bias=False) for _ in LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        slots = [x] * TASKS
        for stacks, stitch in zip(self.stacks, self.stitches, strict=True):
            stacked = torch.stack([stack(slot) for stack, slot in zip(stacks, slots, strict=True)], dim=2)
            slots = list(stitch(stacked).unbind(2))
        return torch.stack(slots, dim=1)


class LoopAITM(nn.Module):
    """AITM, one product at a time."""

    def __init__(self) -> None:
        super().__init__()
        width = STACK[-1]
        self.bottoms = nn.ModuleList(_sequential(WIDTH, STACK) for _ in range(TASKS))
        self.transfers = nn.ModuleList(nn.Linear(width, width) for _ in range(TASKS - 1))
        self.value, self.key, self.query = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        own = [bottom(x) for bottom in self.bottoms]
        states = [own[0]]
        for transfer, task in zip(self.transfers, own[1:], strict=True):
            tokens = torch.stack([transfer(states[-1]), task], dim=1)
            scores = (self.key(tokens) * self.query(tokens)).sum(-1, keepdim=True) / tokens.shape[-1] ** 0.5
            states.append((torch.softmax(scores, dim=1) * self.value(tokens)).sum(1))
        return torch.stack(states, dim=1)


class LoopStacks(nn.Module):
    """Stacks one by one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(_sequential(WIDTH, STACK) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [stack(x) for stack in self.stacks]
        return torch.stack(outputs * (TASKS // len(outputs)), dim=1)


class RecordedProducts(TorchDispatchMode):
    """A mode that records every matrix product; :meth:`replay` repeats all of them with random numbers."""

    # operator -> the product, and the place of its two factors among the arguments
    PRODUCTS: ClassVar[dict[Any, tuple[Callable[..., Any], int]]] = {
        torch.ops.aten.mm.default: (torch.mm, 0),
        torch.ops.aten.bmm.default: (torch.bmm, 0),
        torch.ops.aten.addmm.default: (torch.mm, 1),
        torch.ops.aten.baddbmm.default: (torch.bmm, 1),
    }

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Callable[..., Any], Tensor, Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator unchanged."""
        out = func(*args, **(kwargs or {}))
        if func in self.PRODUCTS:
            product, first = self.PRODUCTS[func]
            self.products.append((product, *(_like(t) for t in (*args[first : first + 2], out))))
        return out

    def replay(self) -> None:
        """Repeat all products, in order."""
        for product, left, right, out in self.products:
            product(left, right, out=out)


def _like(tensor: Tensor) -> Tensor:
    """Random numbers of the same shape and layout."""
    return torch.empty_strided(tensor.shape, tensor.stride()).normal_()


def _sequential(width: int, layers: Sequence[int]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for out in layers:
        modules += [nn.Linear(width, out), nn.ReLU()]
        width = out
    return nn.Sequential(*modules)


def _levels(sees: list[list[list[int]]], slots: list[int], native: Sequence[int] = ()) -> list[LoopLevel]:
    widths = [WIDTH, *(layers[-1] for layers in LEVELS)]
    return [
        LoopLevel(widths[level], widths[level], layers, slots, sees[level], native[: len(sees[level])])
        for level, layers in enumerate(LEVELS)
    ]


def cases() -> dict[str, tuple[MultitaskConfig, Callable[[], nn.Module]]]:
    """Every architecture: its configuration and its loop-written twin."""
    every = list(range(8))
    ple_task = [[t, 4, 5, 6, 7] for t in range(TASKS)]
    ple_slots = [0, 1, 2, 3, 4, 4, 4, 4]
    two_each = [0, 0, 1, 1, 2, 2, 3, 3]
    return {
        "shared_bottom": (SharedBottomConfig(layers=STACK), lambda: LoopStacks(1)),
        "single_task": (SingleTaskConfig(layers=STACK), lambda: LoopStacks(TASKS)),
        "omoe": (
            OMoEConfig(experts=8, layers=STACK),
            lambda: Loop([LoopLevel(WIDTH, WIDTH, STACK, [0] * 8, [every])]),
        ),
        "mmoe": (
            MMoEConfig(experts=8, layers=STACK),
            lambda: Loop([LoopLevel(WIDTH, WIDTH, STACK, [0] * 8, [every] * TASKS)]),
        ),
        "multi_level_mmoe": (
            MultiLevelMMoEConfig(experts=8, levels=LEVELS),
            lambda: Loop(
                [
                    LoopLevel(WIDTH, WIDTH, [256], every, [every] * 8),
                    LoopLevel(256, WIDTH, [128], every, [every] * TASKS),
                ],
                raw_gates=True,
            ),
        ),
        "ple, 4 own + 4 shared": (
            PLEConfig(task_experts=1, shared_experts=4, levels=LEVELS),
            lambda: Loop(_levels([[*ple_task, every], ple_task], ple_slots)),
        ),
        "cross_stitch": (CrossStitchConfig(levels=LEVELS), LoopStitch),
        "adatt_sp, 2 per task": (
            AdaTTSpConfig(task_experts=2, levels=LEVELS),
            lambda: Loop(_levels([[every] * TASKS] * 2, two_each, native=[2] * TASKS)),
        ),
        "adatt, 4 own + 4 shared": (
            AdaTTConfig(task_experts=1, shared_experts=4, levels=LEVELS),
            lambda: Loop(_levels([[every] * (TASKS + 1), [every] * TASKS], ple_slots, native=[1, 1, 1, 1, 4])),
        ),
        "aitm": (AITMConfig(layers=STACK), LoopAITM),
    }


def run(quick: bool) -> dict[str, Any]:
    """Measure all architectures, print a table, and return the figures."""
    turns, rows = (5, ROWS // 4) if quick else (11, ROWS)
    results: list[dict[str, Any]] = []
    threads_before = torch.get_num_threads()
    try:
        for threads in sorted({1, min(2, os.cpu_count() or 1)}):
            torch.set_num_threads(threads)
            plural = "s" if threads > 1 else ""
            print(f"\n{rows} rows, forward and backward, {threads} thread{plural}")
            head = ("loops ms", "batched ms", "products ms", "speed-up", "  middle half", "limit", "share")
            print(f"  {'':24}{head[0]:>10}{head[1]:>12}{head[2]:>13}{head[3]:>10}{head[4]:16}{head[5]:>7}{head[6]:>7}")
            for name, (config, loops) in cases().items():
                results.append({"threads": threads, "architecture": name, **_measure(config, loops(), rows, turns)})
                _show(results[-1])
    finally:
        torch.set_num_threads(threads_before)
    named = ("mmoe", "ple", "adatt_sp")
    most = [row for row in results if row["threads"] == max(r["threads"] for r in results)]
    lowest = min(row["speed_up"] for row in most if row["architecture"].split(",")[0] in named)
    print(
        "Limit: speed-up of a form that takes no time but that of its matrix products, which are `share` of the batched form's."
    )
    print(f"\nLowest speed-up of MMoE, PLE and AdaTT on {most[0]['threads']} threads: {lowest:.2f} (target: {TARGET})")
    return {"target": TARGET, "lowest": lowest, "rows": rows, "turns": turns, "quick": quick, "cases": results}


def _measure(config: MultitaskConfig, loops: nn.Module, rows: int, turns: int) -> dict[str, Any]:
    batched = build_multitask(config, WIDTH, TASKS)
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (loops, batched)]
    assert sizes[0] == sizes[1], f"{config.name}: {sizes} parameters"
    x = torch.randn(rows, WIDTH)
    recorded = RecordedProducts()
    with recorded:
        out = batched(x.clone().requires_grad_())
        out.backward(torch.ones_like(out))
    seconds: dict[str, list[float]] = {"loops": [], "batched": [], "products": []}
    modules = {"loops": loops, "batched": batched}
    for turn in range(turns + 2):
        for name in sorted(seconds, reverse=turn % 2 == 1):
            features = x.clone().requires_grad_()
            start = time.perf_counter()
            if name == "products":
                recorded.replay()
            else:
                out = modules[name](features)
                out.backward(torch.ones_like(out))
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
            if name in modules:
                modules[name].zero_grad()
    ratios = sorted(loop / own for loop, own in zip(seconds["loops"], seconds["batched"], strict=True))
    quarter = len(ratios) // 4
    products = seconds["products"]
    return {
        "parameters": sizes[0],
        "loops_ms": statistics.median(seconds["loops"]) * 1e3,
        "batched_ms": statistics.median(seconds["batched"]) * 1e3,
        "products_ms": statistics.median(products) * 1e3,
        "speed_up": statistics.median(ratios),
        "low": ratios[quarter],
        "high": ratios[-1 - quarter],
        # Ratio to the loops of a form with only its products; and their share of the batched form's time.
        "limit": statistics.median(loop / least for loop, least in zip(seconds["loops"], products, strict=True)),
        "share": statistics.median(least / own for least, own in zip(products, seconds["batched"], strict=True)),
    }


def _show(row: dict[str, Any]) -> None:
    spread = f"  {row['low']:.2f} to {row['high']:.2f}"
    print(
        f"  {row['architecture']:24}{row['loops_ms']:10.1f}{row['batched_ms']:12.1f}{row['products_ms']:13.1f}"
        f"{row['speed_up']:10.2f}{spread:16}{row['limit']:7.2f}{row['share']:7.2f}"
    )


if __name__ == "__main__":
    run(quick=False)
