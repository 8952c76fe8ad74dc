"""Lookups of stored rows in serving, beside FBGEMM's CPU operator for inference on the same formats.

Both look up random rows of one table that is much larger than the processor's caches, in bags of 20 ids, on one thread. Every
call has ids of its own. Calls are made in turn, six of a kind after each other, of which the first is not counted. Times are
those of the thread; the lowest tenth are those that other programs disturbed least, which share caches and memory. The operator
is ``IntNBitTableBatchedEmbeddingBagsCodegen`` on the CPU with float32 outputs, with int32 and with int64 ids; ratios are to the
faster of the two. Both tables are in memory of the same kind: pages of 4 KiB, as a mapped file has, and pages of 2 MiB.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.huge_pages import use_huge_pages
from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.embeddings.row_formats import FORMATS

DIM = 64
BAG = 20
BAGS = 500
CALLS = 5
"""Number of calls of a kind after each other that are counted."""
Call = Callable[[Tensor, Tensor], object]


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; print a table, and return its figures."""
    torch.set_num_threads(1)
    rows, rounds = (2_000_000, 12) if quick else (8_000_000, 40)
    print(f"{rows:,} rows of {DIM} columns, {BAGS} bags of {BAG} ids, 1 thread, {cpu.isa()}")
    print("ns per row: median (quartiles; lowest tenth)")
    cases = []
    for huge in (False, True):
        for name in ("int8", "int4", "fp16", "fp32"):
            cases.append(_case(name, rows, rounds, huge))
    return {"rows": rows, "dim": DIM, "bags": BAGS, "bag": BAG, "instruction_set": cpu.isa(), "cases": cases}


def _case(name: str, rows: int, rounds: int, huge: bool) -> dict[str, Any]:
    ours, theirs = _our_table(name, rows), _fbgemm(name, rows)
    pages = "4 KiB"
    if huge:
        pages = "2 MiB" if use_huge_pages(ours) and use_huge_pages(theirs.weights_host) else "4 KiB (no 2 MiB here)"
    format_ = FORMATS[name]
    calls: dict[str, tuple[Call, torch.dtype]] = {
        "dlrm_mtl": (lambda ids, offsets: format_.sums(ours, DIM, ids, offsets[:-1]), torch.int64),
        "fbgemm int32": (theirs, torch.int32),
        "fbgemm int64": (theirs, torch.int64),
    }
    generator = torch.Generator().manual_seed(1)
    times: dict[str, list[float]] = {key: [] for key in calls}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for key, (call, dtype) in calls.items():
                offsets = torch.arange(0, BAGS * BAG + 1, BAG, dtype=dtype)
                for turn, ids in enumerate(
                    torch.randint(0, rows, (CALLS + 1, BAGS * BAG), generator=generator).to(dtype)
                ):
                    start = time.thread_time()
                    call(ids, offsets)
                    if number and turn:
                        times[key].append((time.thread_time() - start) / (BAGS * BAG) * 1e9)
    found = {key: np.percentile(values, [10, 25, 50, 75]).round(2).tolist() for key, values in times.items()}
    best = min(("fbgemm int32", "fbgemm int64"), key=lambda key: found[key][2])
    ratio = {
        what: round(found[best][at] / found["dlrm_mtl"][at], 3) for at, what in ((2, "median"), (0, "least disturbed"))
    }
    shown = ", ".join(f"{key} {q[2]:.1f} ({q[1]:.1f} to {q[3]:.1f}; {q[0]:.1f})" for key, q in found.items())
    ratios = f"{ratio['median']:.2f} x, least disturbed {ratio['least disturbed']:.2f} x"
    print(f"{name:5} pages of {pages}: {shown}; {ratios}", flush=True)
    return {"format": name, "pages": pages, "ns_per_row": found, "baseline": best, "ratio": ratio}


def _our_table(name: str, rows: int) -> Tensor:
    """A table in memory without pages of 2 MiB, which NumPy asks for by itself."""
    row_bytes = FORMATS[name].row_bytes(DIM)
    stored = torch.empty(rows, row_bytes, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, rows, 1 << 16):
        part = stored[start : start + (1 << 16)]
        part.copy_(FORMATS[name].encode(torch.randn(len(part), DIM, generator=generator)))
    return stored


def _fbgemm(name: str, rows: int) -> Any:
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    kind = {"int8": SparseType.INT8, "int4": SparseType.INT4, "fp16": SparseType.FP16, "fp32": SparseType.FP32}[name]
    tables = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("table", rows, DIM, kind, EmbeddingLocation.HOST)],
        device="cpu",
        pooling_mode=PoolingMode.SUM,
        output_dtype=SparseType.FP32,
        row_alignment=1,  # rows without gaps; with 16, its default on a GPU, it reads more memory
    )
    tables.initialize_weights()
    weights, scales = tables.split_embedding_weights()[0]
    generator = torch.Generator().manual_seed(0)
    for start in range(0, rows, 1 << 16):
        part = weights[start : start + (1 << 16)]
        if name in ("int8", "int4"):
            part.random_(0, 256, generator=generator)
        else:
            values = torch.randn(len(part), DIM, generator=generator)
            part.copy_((values.half() if name == "fp16" else values).view(torch.uint8))
    if scales is not None:
        scales.copy_(torch.tensor([0.01, -1.0]).half().view(torch.uint8).expand_as(scales))
    return tables
