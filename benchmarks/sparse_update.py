"""Lookup, backward pass and update of embedding tables on the CPU, compared with FBGEMM and PyTorch.

All variants run in one process on the same batches, interleaved, so that other load on the machine affects all of them;
ratios are taken within a turn. A turn in which other processes took much of the processor is repeated, for a minute at
most; the figures say how many such turns are left. Each variant looks up a batch, gets the same gradient with respect to
the output, and updates.

    python -m benchmarks sparse-update
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.huge_pages import use_huge_pages
from benchmarks.row_pass import compiled_pass
from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.embeddings.kernels.layout import RowGradients, TableGroup, Update

TARGETS = {"uniform": 3.5, "zipf": 2.7}
"""Times FBGEMM's row-wise AdaGrad, with two threads."""
BASELINE = "FBGEMM row-wise AdaGrad"
OURS = "Clippy row-wise AdaGrad"
LEARNING_RATE = 0.1
PATIENCE = 60.0
"""Seconds that the turns of one case may take longer because of other processes."""


@dataclass(frozen=True)
class Case:
    """Sizes and distribution of one case."""

    ids: str = "uniform"
    """``uniform``, or ``zipf``: row of rank k with a probability proportional to k ** -1.05, ranks in random order."""
    dim: int = 64
    per_bag: int = 10
    tables: int = 8
    rows: int = 1_000_000
    bags: int = 2048
    size: float = 1.0
    """Standard deviation of the gradient: at 1 every table is clipped, at 1e-3 none is."""
    weights: tuple[float, float] = (-0.125, 0.125)
    """Smallest and largest weight. With (0.5, 1) no weight is near 0, so that every row must be read for the factor."""

    def label(self) -> str:
        """The case in a few words."""
        batch = f"{self.bags} bags of {self.per_bag}, {self.ids} ids, gradient {self.size:g}, weights {self.weights}"
        return f"{self.tables} x {self.rows:,} x {self.dim}, {batch}"

    @property
    def lookups(self) -> int:
        """Ids of a batch."""
        return self.tables * self.bags * self.per_bag


@dataclass
class Batch:
    """Concatenate the ids table by table, for all variants but PyTorch."""

    indices: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        self.short_indices, self.short_offsets = self.indices.int(), self.offsets.int()


class Contestant(Protocol):
    """Tables with lookup and update."""

    def __init__(self, case: Case) -> None: ...

    def step(self, batch: Batch, gradient: Tensor) -> None: ...

    def weights(self) -> list[Tensor]: ...

    def states(self) -> list[Tensor]: ...


class _Lookup(torch.autograd.Function):
    """As in training: the backward pass collects gradients."""

    @staticmethod
    def forward(ctx: Any, placeholder: Tensor, tables: TwoPhase, batch: Batch) -> Tensor:
        ctx.tables, ctx.batch = tables, batch
        return cpu.lookup(tables.group, batch.indices, batch.offsets, tables.bags)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        tables, batch = ctx.tables, ctx.batch
        tables.pending = cpu.collect(tables.group, batch.indices, batch.offsets, tables.bags, gradients[0])
        return None, None, None


class TwoPhase:
    """This project's tables: Clippy with one factor per table."""

    rule = Update()

    def __init__(self, case: Case) -> None:
        self.bags = case.bags
        tables = torch.arange(case.tables + 1)
        weights = torch.empty(case.tables * case.rows * case.dim)
        dims = torch.full((case.tables,), case.dim)
        offsets = tables[:-1] * case.rows * case.dim
        self.group = TableGroup(weights, offsets, tables * case.rows, dims, tables[:-1].contiguous())
        self.state = torch.empty(case.tables * case.rows)
        self.placeholder = torch.zeros(0, requires_grad=True)
        self.pending: RowGradients | None = None

    def step(self, batch: Batch, gradient: Tensor) -> None:
        """Both phases of the update."""
        _Lookup.apply(self.placeholder, self, batch).backward(gradient)
        collected, self.pending = self.pending, None
        assert collected is not None
        with torch.no_grad():
            means = collected.square_sums / self.group.dims[0]
            factors = cpu.factors(self.group, self.state, collected, means, self.rule, LEARNING_RATE)
            cpu.apply(self.group, self.state, collected, means, factors, self.rule, LEARNING_RATE)

    def weights(self) -> list[Tensor]:
        """One buffer."""
        return [self.group.weights]

    def states(self) -> list[Tensor]:
        """One buffer."""
        return [self.state]


class Fbgemm:
    """FBGEMM's tables, updated in the backward pass."""

    optimizer = "EXACT_ROWWISE_ADAGRAD"

    def __init__(self, case: Case) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        specs = [(case.rows, case.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * case.tables
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            specs,
            optimizer=EmbOptimType[self.optimizer],
            learning_rate=LEARNING_RATE,
            # Its fastest settings: no check of ids, and ids of 32 bits.
            bounds_check_mode=BoundsCheckMode.NONE,
            embedding_table_index_type=torch.int32,
            embedding_table_offset_type=torch.int32,
            stochastic_rounding=False,
        )

    def step(self, batch: Batch, gradient: Tensor) -> None:
        """The backward pass updates."""
        self.tables(batch.short_indices, batch.short_offsets).backward(gradient)

    def weights(self) -> list[Tensor]:
        """One buffer."""
        return [self.tables.weights_host]

    def states(self) -> list[Tensor]:
        """None for SGD."""
        return [state for states in self.tables.split_optimizer_states() for state in states]


class FbgemmSgd(Fbgemm):
    """As :class:`Fbgemm`, without a state."""

    optimizer = "EXACT_SGD"


class PlainTorch:
    """``nn.EmbeddingBag(sparse=True)`` and ``torch.optim.Adagrad``, whose state is as large as the tables."""

    def __init__(self, case: Case) -> None:
        self.tables = [
            nn.EmbeddingBag.from_pretrained(torch.empty(case.rows, case.dim), mode="sum", sparse=True, freeze=False)
            for _ in range(case.tables)
        ]
        self.optimizer = torch.optim.Adagrad(
            [table.weight for table in self.tables], LEARNING_RATE, initial_accumulator_value=0.1
        )

    def step(self, batch: Batch, gradient: Tensor) -> None:
        """One table after the other."""
        bags = (len(batch.offsets) - 1) // len(self.tables)
        starts = batch.offsets[::bags].tolist()
        outputs = []
        for index, (table, first, last) in enumerate(zip(self.tables, starts[:-1], starts[1:], strict=True)):
            offsets = batch.offsets[index * bags : (index + 1) * bags] - first
            outputs.append(table(batch.indices[first:last], offsets))
        torch.cat(outputs, dim=1).backward(gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> list[Tensor]:
        """One buffer per table."""
        return [table.weight.detach() for table in self.tables]

    def states(self) -> list[Tensor]:
        """As large as the tables."""
        return [self.optimizer.state[table.weight]["sum"] for table in self.tables]


CONTESTANTS: dict[str, type[Contestant]] = {
    OURS: TwoPhase,
    BASELINE: Fbgemm,
    "FBGEMM SGD": FbgemmSgd,
    "EmbeddingBag and torch Adagrad": PlainTorch,
}


def run(quick: bool, keep: Callable[[dict[str, Any]], None] = lambda figures: None) -> dict[str, Any]:
    """Measure all cases, print tables, and return the figures.

    Args:
        quick: True for fewer and smaller cases.
        keep: called with the figures so far, after each case.
    """
    if reason := cpu.native_status():
        raise SystemExit(f"nothing to measure: {reason}")
    print(f"instruction set {cpu.isa()}")
    turns = 5 if quick else 21
    figures: dict[str, Any] = {"quick": quick, "turns": turns, "instruction_set": cpu.isa(), "targets": TARGETS}
    for name, parts in (("steps", _steps), ("bandwidth", _bandwidth_share), ("memory", _memory_growth)):
        figures[name] = []
        for found in parts(quick, turns):
            figures[name].append(found)
            keep(figures)
    return figures


# ---- steps ----


def _threads_to_try() -> list[int]:
    return sorted({1, min(2, os.cpu_count() or 1)})


def _rows(quick: bool) -> int:
    return 100_000 if quick else 1_000_000


def _steps(quick: bool, turns: int) -> Iterator[dict[str, Any]]:
    """Figures of the steps, by shape, page size and threads."""
    threads = _threads_to_try()
    print("\nForward, backward and update, against all others")
    yield from _compare([Case(ids, rows=_rows(quick)) for ids in TARGETS], list(CONTESTANTS), threads, turns)
    print("\nOther shapes, two threads")
    others = [
        Case("uniform", size=1e-3),
        Case("zipf", size=1e-3),
        Case("uniform", weights=(0.5, 1.0)),
        Case("zipf", weights=(0.5, 1.0)),
        Case(dim=16),
        Case(dim=128, tables=4),
        Case(dim=256, tables=2),
        Case(per_bag=1),
        Case(per_bag=100, tables=4),
        Case("zipf", per_bag=100, tables=4),
        Case("zipf", tables=1, bags=16384),
    ]
    for case in others[:4] if quick else others:
        yield from _compare([case], [OURS, BASELINE], threads[-1:], turns)


def _compare(cases: list[Case], names: list[str], threads: list[int], turns: int) -> Iterator[dict[str, Any]]:
    """Figures of some cases on the same tables, in ordinary pages and then in huge ones."""
    contestants = {name: CONTESTANTS[name](cases[0]) for name in names}
    streams = {case: Stream(case) for case in cases}
    for pages in ("4 KiB", "2 MiB"):
        if pages == "2 MiB":
            weights = [tensor for contestant in contestants.values() for tensor in contestant.weights()]
            if not all(list(map(use_huge_pages, weights))):
                return
        for count in threads:
            for case in cases:
                for contestant in contestants.values():
                    _begin_anew(contestant, case)
                with _threads(count):
                    steps = {name: contestant.step for name, contestant in contestants.items()}
                    times, disturbed = _take_turns(steps, streams[case], case, turns)
                figures = {
                    **asdict(case),
                    "threads": count,
                    "pages": pages,
                    "disturbed_turns": disturbed,
                    "contestants": _summary(times, case.lookups),
                }
                _show_steps(case, figures)
                yield figures


def _take_turns(
    steps: Mapping[str, Callable[[Batch, Tensor], None]], stream: Stream, case: Case, turns: int
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each variant's step by turn, after a warm-up turn; and the number of disturbed turns."""
    gradient = torch.randn(case.bags, case.tables * case.dim, generator=torch.Generator().manual_seed(1)) * case.size
    times: dict[str, list[float]] = {name: [] for name in steps}
    names, turn, disturbed, patience = list(steps), 0, 0, time.monotonic() + PATIENCE
    while len(times[names[0]]) <= turns:
        seconds, batch = {}, stream.next()
        others = _busy_elsewhere()
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            steps[name](batch, gradient)
            seconds[name] = time.perf_counter() - begin
        turn += 1
        others = _busy_elsewhere() - others
        if others > max(0.1 * sum(seconds.values()), 0.02):
            if time.monotonic() < patience:
                time.sleep(0.2)
                continue
            disturbed += 1
        for name in names:
            times[name].append(seconds[name])
    return {name: values[1:] for name, values in times.items()}, disturbed


def _busy_elsewhere() -> float:
    """Time that all processors spent on other processes since they were started."""
    user, nice, system, *_ = (int(field) for field in Path("/proc/stat").read_text().split()[1:9])
    own = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def _summary(times: dict[str, list[float]], lookups: int) -> dict[str, dict[str, float]]:
    """Medians and quartiles; ``speedup`` is the ratio to the baseline's speed, by turn."""
    summary = {}
    for name, seconds in times.items():
        speedups = [base / own for base, own in zip(times[BASELINE], seconds, strict=True)]
        low, _, high = statistics.quantiles(speedups, n=4)
        summary[name] = {
            "milliseconds": statistics.median(seconds) * 1e3,
            "million_lookups_per_second": lookups / statistics.median(seconds) / 1e6,
            "speedup": statistics.median(speedups),
            "speedup_low": low,
            "speedup_high": high,
        }
    return summary


def _show_steps(case: Case, figures: dict[str, Any]) -> None:
    print(f"\n  {case.label()}; {figures['threads']} threads, {figures['pages']} pages", end="")
    print(f"; {figures['disturbed_turns']} turns disturbed" if figures["disturbed_turns"] else "")
    for name, of in figures["contestants"].items():
        spread = f"({of['speedup_low']:.2f} to {of['speedup_high']:.2f})"
        print(
            f"    {name:32}{of['milliseconds']:9.2f} ms {of['million_lookups_per_second']:7.2f} M lookups/s"
            f"{of['speedup']:8.2f} x {spread}",
            flush=True,
        )


# ---- share of the memory bandwidth ----


def _bandwidth_share(quick: bool, turns: int) -> Iterator[dict[str, Any]]:
    """Time of the lookup and of the step, beside loops that only read, or read and write, the same rows.

    The bound is a model. The lookup reads each row that occurs in the batch once, and further occurrences hit a cache; the
    update reads and writes each such row once. Gradients, ids, sorting and the accumulators cost nothing. Rows that stay in a
    cache from one batch to the next, as the most frequent ones of Zipf ids may, would allow a step to be faster than that.
    On the other hand, no lookup in the order of the batch reaches it with Zipf ids: reading again from a cache takes time, too.
    """
    rows = _rows(quick)
    case = Case(rows=rows)
    print(
        f"\nShare of the bandwidth of random rows, {case.tables} x {case.rows:,} x {case.dim}, {case.lookups:,} lookups"
    )
    run_pass = compiled_pass()
    if run_pass is None:
        print("no g++: not measured")
        return
    tables = TwoPhase(Case(rows=rows))
    for pages in ("4 KiB", "2 MiB"):
        if pages == "2 MiB" and not use_huge_pages(tables.group.weights):
            break
        for ids in TARGETS:
            case = Case(ids, rows=rows)
            _begin_anew(tables, case)
            stream = Stream(case)
            for count in _threads_to_try():
                with _threads(count):
                    figures = _shares(tables, stream, case, run_pass, turns, count)
                print(
                    f"    {ids:8}{count} threads, {pages} pages: rows read {figures['read_M_rows']:6.2f} M/s "
                    f"({figures['read_M_rows'] * case.dim * 4 / 1e3:.1f} GB/s), read and written "
                    f"{figures['rewritten_M_rows']:6.2f} M/s; distinct {figures['distinct']:.0%}; lookup "
                    f"{figures['lookup_share']:.0%} and step {figures['step_share']:.0%} of the bound",
                    flush=True,
                )
                yield {"ids": ids, "threads": count, "pages": pages, **figures}


def _shares(
    tables: TwoPhase, stream: Stream, case: Case, run_pass: Callable[..., int], turns: int, threads: int
) -> dict[str, float]:
    """Rates of the loops and shares of the lookup and the step, all of them in turns."""
    starts = torch.arange(case.tables).repeat_interleave(case.bags * case.per_bag) * case.rows
    gradient = torch.randn(case.bags, case.tables * case.dim, generator=torch.Generator().manual_seed(1))
    passes: dict[tuple[int, int], list[float]] = {(d, w): [] for d in (4, 8, 16, 32) for w in (0, 1)}
    lookups, steps, shares = [], [], []
    for _ in range(turns):
        for (distance, writes), seconds in passes.items():
            rows = (stream.next().indices + starts).unique()
            rows = rows[torch.randperm(len(rows))]
            begin = time.perf_counter()
            address = tables.group.weights.data_ptr()
            run_pass(address, case.dim * 4, rows.data_ptr(), len(rows), distance, threads, writes, 0)
            seconds.append((time.perf_counter() - begin) / len(rows))
        batch = stream.next()
        shares.append(len((batch.indices + starts).unique()) / case.lookups)
        begin = time.perf_counter()
        cpu.lookup(tables.group, batch.indices, batch.offsets, case.bags)
        lookups.append(time.perf_counter() - begin)
        batch = stream.next()
        begin = time.perf_counter()
        tables.step(batch, gradient)
        steps.append(time.perf_counter() - begin)
    read, rewritten = (min(statistics.median(passes[d, w]) for d in (4, 8, 16, 32)) for w in (0, 1))
    distinct = statistics.median(shares)
    return {
        "read_M_rows": 1e-6 / read,
        "rewritten_M_rows": 1e-6 / rewritten,
        "distinct": distinct,
        "lookup_share": distinct * case.lookups * read / statistics.median(lookups),
        "step_share": distinct * case.lookups * (read + rewritten) / statistics.median(steps),
        "step_M_lookups": case.lookups / statistics.median(steps) / 1e6,
    }


# ---- memory ----


def _memory_growth(quick: bool, turns: int) -> Iterator[dict[str, Any]]:
    """Growth of memory, for several sizes of the batch."""
    for ids in TARGETS:
        for bags in (512, 2048) if quick else (512, 2048, 8192):
            yield _memory(Case(ids, bags=bags, rows=_rows(quick)))


def _memory(case: Case) -> dict[str, Any]:
    """Growth of the process's memory over tables and state while it steps."""
    contestant = TwoPhase(case)
    _begin_anew(contestant, case)
    stream = Stream(case)
    batches = [stream.next() for _ in range(4)]
    gradient = torch.randn(case.bags, case.tables * case.dim)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status("VmRSS")
    for batch in batches:
        contestant.step(batch, gradient)
    growth = _status("VmHWM") - before
    per_id = growth * 1024 / case.lookups
    print(
        f"  memory over tables and state: {growth / 1024:7.1f} MiB, {per_id:6.0f} bytes per id: {case.label()}",
        flush=True,
    )
    return {**asdict(case), "growth_MiB": growth / 1024, "bytes_per_id": per_id}


def _status(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


# ---- data ----


class Stream:
    """Endless batches, none of them repeated, as in training."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.numbers = np.random.default_rng(0)
        self.cumulative = np.cumsum(np.arange(1, case.rows + 1, dtype=np.float64) ** -1.05)
        self.orders = [self.numbers.permutation(case.rows) for _ in range(case.tables)]

    def next(self) -> Batch:
        """Draw a batch."""
        case, size = self.case, self.case.bags * self.case.per_bag
        ids = [self.numbers.integers(0, case.rows, size) for _ in range(case.tables)]
        if case.ids == "zipf":
            draws = (np.sort(self.numbers.random(size)) * self.cumulative[-1] for _ in range(case.tables))
            ranks = (self.numbers.permutation(np.searchsorted(self.cumulative, drawn)) for drawn in draws)
            ids = [order[rank] for order, rank in zip(self.orders, ranks, strict=True)]
        return Batch(torch.from_numpy(np.concatenate(ids)), torch.arange(case.tables * case.bags + 1) * case.per_bag)


def _begin_anew(contestant: Contestant, case: Case) -> None:
    with torch.no_grad():
        for weights in contestant.weights():
            weights.uniform_(*case.weights)
        for state in contestant.states():
            state.fill_(0.1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
