"""Forward, backward and update of embedding tables on a GPU: the Triton kernels beside PyTorch and, where installed, FBGEMM.

    python -m benchmarks.sparse_update_cuda [--quick] [--json FILE]

Needs PyTorch and Triton only. All variants get the same ids and the same gradient of the output, interleaved; times are of
CUDA events, ratios are taken within a turn. Each case is measured twice:

- *from idle*: one step that begins and ends on an idle device, so that the host's time to launch kernels counts;
- *in a row*: 20 steps without synchronisation, as in training, where the host runs ahead of the device. The longer one of
  the host's and the device's part of a step counts.

The share of bandwidth is the memory traffic of any exact update, per time of a step in a row: each touched row is read by
the lookup, and read and written by the update, and the output and its gradient pass once. It is relative to the bandwidth
of copying a large buffer on the same device.

Last run on an NVIDIA H100 80GB HBM3, driver 580, with torch 2.11.0+cu130, Triton 3.7.1 and FBGEMM 1.6.0; the figures are in
docs/two_phase.md. ``--smoke`` runs tiny sizes, also on a CPU in Triton's interpreter (TRITON_INTERPRET=1), to see that the
script works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor, nn

from dlrm_mtl.embeddings.kernels import cuda
from dlrm_mtl.embeddings.kernels.layout import RowGradients, TableGroup, Update

BASELINE = "EmbeddingBag + Adagrad"
STEPS_IN_A_ROW = 20
RULE = Update(eps=1e-8)
LR = 0.02


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement; one feature per table."""

    tables: int = 8
    rows: int = 1_000_000
    dim: int = 64
    bags: int = 2048
    ids_per_bag: int = 10
    zipf: float = 0.0
    """Exponent of the ids' distribution; 0 for uniform."""

    def __str__(self) -> str:
        """Name in the table."""
        ids = f"Zipf({self.zipf})" if self.zipf else "uniform"
        return f"{self.tables} x {self.rows} x {self.dim}, batch {self.bags} x {self.ids_per_bag} ids, {ids}"


CASES = [
    *(Case(bags=bags, zipf=zipf) for zipf in (0.0, 1.05) for bags in (2048, 32768)),
    *(Case(dim=dim, bags=8192, zipf=zipf) for zipf in (0.0, 1.05) for dim in (16, 128, 256)),
    *(Case(ids_per_bag=ids, bags=8192) for ids in (1, 100)),
]
QUICK = [Case(), Case(zipf=1.05)]
SMOKE = [Case(tables=2, rows=50, dim=8, bags=4, ids_per_bag=3), Case(tables=2, rows=50, dim=8, bags=6, zipf=1.05)]

Step = Callable[[Tensor, Tensor, Tensor], None]
"""Takes indices [N], offsets [F * B + 1] and the gradient of the output [B, F * D]."""


class _Lookup(torch.autograd.Function):
    """Collects the gradient of the rows in backward, into ``collected``."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, group: TableGroup, indices: Tensor, offsets: Tensor, collected: list[RowGradients]
    ) -> Tensor:
        ctx.group, ctx.collected, ctx.bags = group, collected, (len(offsets) - 1) // len(group.feature_tables)
        ctx.save_for_backward(indices, offsets)
        # Sorted first, so that the sizes reach the host while the device looks up.
        ctx.occurrences = cuda.sort_pooled(group, indices, offsets, ctx.bags)
        return cuda.lookup(group, indices, offsets, ctx.bags)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        indices, offsets = ctx.saved_tensors
        ctx.collected.append(
            cuda.collect(ctx.group, indices, offsets, ctx.bags, gradients[0], occurrences=ctx.occurrences)
        )
        return None, None, None, None, None


def two_phase(case: Case, device: torch.device, rule: Update) -> Step:
    """This project's kernels."""
    sizes = torch.full((case.tables,), case.rows)
    group = TableGroup(
        weights=torch.randn(case.tables * case.rows * case.dim, device=device) * 0.01,
        weight_offsets=torch.arange(case.tables) * case.rows * case.dim,
        row_offsets=torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        dims=torch.full((case.tables,), case.dim),
        feature_tables=torch.arange(case.tables),
    )
    state = torch.full((case.tables * case.rows,), 0.1, device=device)
    anchor = torch.zeros(1, device=device, requires_grad=True)

    def step(indices: Tensor, offsets: Tensor, gradient: Tensor) -> None:
        collected: list[RowGradients] = []
        _Lookup.apply(anchor, group, indices, offsets, collected).backward(gradient)
        mean_squares = collected[0].square_sums / case.dim
        factor = cuda.factors(group, state, collected[0], mean_squares, rule, LR)
        cuda.apply(group, state, collected[0], mean_squares, factor, rule, LR)

    return step


def embedding_bags(case: Case, device: torch.device) -> Step:
    """PyTorch's sparse gradients and element-wise Adagrad."""
    bags = nn.ModuleList(
        nn.EmbeddingBag(case.rows, case.dim, mode="sum", sparse=True, device=device) for _ in range(case.tables)
    )
    optimizer = torch.optim.Adagrad(bags.parameters(), lr=LR, initial_accumulator_value=0.1)

    def step(indices: Tensor, offsets: Tensor, gradient: Tensor) -> None:
        optimizer.zero_grad()
        pieces = indices.view(case.tables, -1)
        starts = offsets[: case.bags]
        torch.cat([bag(ids, starts) for bag, ids in zip(bags, pieces, strict=True)], dim=1).backward(gradient)
        optimizer.step()

    return step


def fbgemm(case: Case, device: torch.device) -> Step | None:
    """FBGEMM's row-wise AdaGrad, updated in backward; None if FBGEMM is not installed for this device."""
    try:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        place = (
            (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
            if device.type == "cuda"
            else (EmbeddingLocation.HOST, ComputeDevice.CPU)
        )
        tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(case.rows, case.dim, *place)] * case.tables,
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LR,
            eps=1e-8,
            device=device,
        )
        tables.init_embedding_weights_uniform(-0.01, 0.01)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        print(f"without FBGEMM: {error}")
        return None

    def step(indices: Tensor, offsets: Tensor, gradient: Tensor) -> None:
        tables(indices, offsets).backward(gradient)

    return step


def run(quick: bool, smoke: bool = False) -> dict[str, Any]:
    """Measure all cases, print a table, and return the figures.

    Raises:
        RuntimeError: there is no CUDA device.
    """
    if not torch.cuda.is_available() and not smoke:
        raise RuntimeError("this benchmark needs a CUDA device; on a CPU only --smoke runs, with TRITON_INTERPRET=1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, interpreted"
    peak = copy_bandwidth(device, 1 << 14 if smoke else 1 << 28)
    print(f"{name}; a copy moves {peak / 1e9:.0f} GB/s; torch {torch.__version__}")
    turns = 2 if smoke else 20 if quick else 50
    cases = SMOKE if smoke else QUICK if quick else CASES
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_bytes_per_second": peak,
        "turns": turns,
        "cases": [measure(case, device, turns, peak) for case in cases],
    }


def measure(case: Case, device: torch.device, turns: int, peak: float) -> dict[str, Any]:
    """Time all variants on one case."""
    torch.manual_seed(0)
    batches = [make_batch(case, device) for _ in range(4)]
    steps: dict[str, Step] = {
        BASELINE: embedding_bags(case, device),
        "two-phase Clippy": two_phase(case, device, RULE),
        "two-phase AdaGrad": two_phase(case, device, Update(kind="adagrad", eps=1e-8)),
    }
    stock = fbgemm(case, device)
    if stock is not None:
        steps["FBGEMM row-wise AdaGrad"] = stock
    seconds: dict[str, list[float]] = {contestant: [] for contestant in steps}
    in_a_row: dict[str, list[float]] = {contestant: [] for contestant in steps}
    memory: dict[str, float] = {}
    names, shuffle = list(steps), random.Random(0)
    for turn in range(turns + 3):
        for contestant in shuffle.sample(names, len(names)):  # none always follows the same one
            elapsed, extra = timed(device, steps[contestant], batches[turn % len(batches) :][:1])
            if turn >= 3:  # the first ones compile
                seconds[contestant].append(elapsed)
                memory[contestant] = max(extra, memory.get(contestant, 0.0))
    for _ in range(max(turns // 5, 2)):
        for contestant in shuffle.sample(names, len(names)):
            elapsed, _ = timed(device, steps[contestant], batches * (STEPS_IN_A_ROW // len(batches)))
            in_a_row[contestant].append(elapsed)
    touched = statistics.mean(len(indices.unique()) for indices in _by_table(case, batches))
    bytes_needed = 4 * case.dim * (3 * touched * case.tables + 2 * case.bags * case.tables)
    lookups = case.tables * case.bags * case.ids_per_bag
    print(f"\n{case}; {touched * case.tables:.0f} rows touched")
    print(
        f"  {'':26}{'from idle ms':>14}{'speed-up':>10}{'in a row ms':>14}{'speed-up':>10}{'bandwidth':>11}{'memory MB':>11}"
    )
    contestants = {}
    for contestant in names:
        idle, row = statistics.median(seconds[contestant]), statistics.median(in_a_row[contestant])
        speed_ups = [
            statistics.median(base / own for base, own in zip(times[BASELINE], times[contestant], strict=True))
            for times in (seconds, in_a_row)
        ]
        contestants[contestant] = {
            "from_idle_ms": idle * 1e3,
            "from_idle_fastest_ms": min(seconds[contestant]) * 1e3,
            "from_idle_speed_up": speed_ups[0],
            "in_a_row_ms": row * 1e3,
            "in_a_row_fastest_ms": min(in_a_row[contestant]) * 1e3,
            "in_a_row_speed_up": speed_ups[1],
            "ids_per_second": lookups / row,
            "share_of_bandwidth": bytes_needed / row / peak,
            "memory_mb": memory[contestant],
        }
        print(
            f"  {contestant:26}{idle * 1e3:14.3f}{speed_ups[0]:10.2f}{row * 1e3:14.3f}{speed_ups[1]:10.2f}"
            f"{bytes_needed / row / peak:11.1%}{memory[contestant]:11.1f}",
            flush=True,
        )
    return {"case": str(case), "rows_touched": touched * case.tables, "contestants": contestants}


def make_batch(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [N], offsets [F * B + 1] and the gradient of the output [B, F * D]."""
    count = case.bags * case.ids_per_bag
    if case.zipf:
        # Inverse of the cumulated frequencies; ranks are scattered over the rows, like hashed ids.
        shares = torch.arange(1, case.rows + 1, dtype=torch.float64).pow(-case.zipf).cumsum(0)
        ranks = torch.searchsorted(shares, torch.rand(case.tables * count, dtype=torch.float64) * shares[-1])
        indices = torch.randperm(case.rows)[ranks.clamp(max=case.rows - 1)]
    else:
        indices = torch.randint(0, case.rows, (case.tables * count,))
    offsets = torch.arange(case.tables * case.bags + 1) * case.ids_per_bag
    gradient = torch.randn(case.bags, case.tables * case.dim) / case.bags
    return indices.to(device), offsets.to(device), gradient.to(device)


def _by_table(case: Case, batches: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    return [ids for indices, _, _ in batches for ids in indices.view(case.tables, -1)]


def timed(device: torch.device, step: Step, batches: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, float]:
    """Seconds per step, one step for each batch, and MB of additional memory."""
    if device.type == "cpu":
        begin = time.perf_counter()
        for batch in batches:
            step(*batch)
        return (time.perf_counter() - begin) / len(batches), 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for batch in batches:
        step(*batch)
    end.record()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    return start.elapsed_time(end) / 1e3 / len(batches), extra / 1e6


def _copy(source: Tensor, target: Tensor, _: Tensor) -> None:
    target.copy_(source)


def copy_bandwidth(device: torch.device, elements: int) -> float:
    """Bytes per second, read and written, of copying ``elements`` floats."""
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    batch = source, target, target
    fastest = min(timed(device, _copy, [batch])[0] for _ in range(10))
    return 2 * 4 * elements / fastest


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two cases, fewer turns")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, only to see that the script works")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    figures = run(arguments.quick, arguments.smoke)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
