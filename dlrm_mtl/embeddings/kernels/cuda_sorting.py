"""Sorting the ids of a batch by the rows they touch, on CUDA."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import triton_kernels as kernels
from dlrm_mtl.embeddings.kernels.cuda_plan import Plan
from dlrm_mtl.embeddings.kernels.triton_launch import Kernel, on

SHORT = 32
"""A row with more occurrences than this is summed in pieces, by several programs."""
BLOCK = 1024
"""Items of a program that treats ids one by one; their counts are packed for this size."""
MOST_IDS = 2**31 - 2 * BLOCK
"""What 32 bits count."""

# Products are rounded before they are added, as on the CPU.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

_keys = Kernel(kernels.keys_kernel, **OPTIONS)
_count = Kernel(kernels.count_kernel, **OPTIONS)
_lists = Kernel(kernels.lists_kernel, **OPTIONS)


@dataclass
class Occurrences:
    """The ids of a batch in the order of the rows they touch; which rows those are, and how many."""

    rows: Tensor
    """[N] int64: the U touched rows, each within its table, ascending, table after table; the rest is not set."""
    lists: Tensor
    """int32: lists of ``room`` elements each, one after the other.

    0. Of each touched row that occurs once: where its gradient begins, in units. Of a repeated one: minus its number, minus 1.
    1. Of each repeated row: its place among the touched rows.
    2. Of each repeated row: where its occurrences begin in list 5,
    3. and where they end.
    4. Of each row with more than SHORT occurrences: its place among the repeated rows.
    5. Of each occurrence of a repeated row: where its gradient begins, in units.
    6. The same of each id, before they were sorted.

    After them, what blocks of ids count.
    """
    room: int
    """A multiple of 4, and at least N."""
    scales: Tensor | None
    """[2, room] float32: the factor of each touched row (1 if repeated), and of each occurrence."""
    sizes: Tensor
    """[2 T + 4] int64: where each table's rows begin in ``rows``, and U; where its repeated rows begin, and their number; how
    many ids lie within their tables; how many rows have more than SHORT occurrences."""
    arriving: Tensor
    """``sizes`` on the CPU, valid once ``arrived`` has happened."""
    arrived: torch.cuda.Event | None
    """None on a CPU."""
    count: int
    """N."""
    _host_sizes: list[int] = field(default_factory=list)

    def host_sizes(self) -> list[int]:
        """Wait for ``sizes``."""
        if not self._host_sizes:
            if self.arrived is not None:
                self.arrived.synchronize()
                _events[self.arrived.device].append(self.arrived)
                self.arrived = None
            self._host_sizes = self.arriving.tolist()
        return self._host_sizes


# To create an event takes longer than anything else that is done with it. An event belongs to a device.
_events: defaultdict[torch.device, list[torch.cuda.Event]] = defaultdict(list)


class Segments(NamedTuple):
    """Stretches of ids, and where the gradients of each stretch lie; see ``keys_kernel``."""

    offsets: Tensor
    bags: int
    bag_units: int
    tables: Tensor
    sources: Tensor
    pooled: bool


def sort_by_row(plan: Plan, indices: Tensor, segments: Segments, scales: Tensor | None = None) -> Occurrences | None:
    """Sort ids by the rows they touch, stably; None if there are none. Does not wait for the device.

    Args:
        plan: of the tables.
        indices: [N] int64 or int32, each within its table.
        segments: which tables they are for, and where their gradients lie.
        scales: [N] factor of each id's gradient; default: 1.

    Raises:
        ValueError: there are more ids than 32 bits count.
    """
    count, device, tables = len(indices), indices.device, plan.tables
    if not count:
        return None
    if count > MOST_IDS:
        raise ValueError(f"a batch of {count} ids: the CUDA kernels take up to {MOST_IDS} at once")
    if segments.bags * segments.bag_units > MOST_IDS:
        raise ValueError(f"{segments.bags} bags of {plan.width} columns are more than the CUDA kernels can address")
    # Radix sort takes time by the bytes of a key.
    narrow = plan.total_rows < torch.iinfo(torch.int32).max
    blocks = blocks_of(count, BLOCK)
    room = 4 * blocks_of(count, 4)
    with on(device):
        keys = torch.empty(count, dtype=torch.int32 if narrow else torch.int64, device=device)
        lists = torch.empty(7 * room + blocks, dtype=torch.int32, device=device)
        _keys(
            (blocks,),
            (
                *(indices.contiguous(), segments.offsets.contiguous(), segments.tables, segments.sources),
                *(plan.table_units, plan.row_offsets, keys, lists),
            ),
            (count, len(segments.offsets) - 1, segments.bags, segments.bag_units, room // 4, tables),
            POOLED=segments.pooled,
            BLOCK=BLOCK,
        )
        keys, order = torch.sort(keys, stable=True)
        _count((blocks,), (keys, lists), (count, room // 4), SHORT=SHORT, BLOCK=BLOCK)
        result = Occurrences(
            rows=torch.empty(count, dtype=torch.int64, device=device),
            lists=lists,
            room=room,
            scales=None if scales is None else torch.empty(2, room, device=device),
            sizes=torch.empty(2 * tables + 4, dtype=torch.int64, device=device),
            arriving=torch.empty(2 * tables + 4, dtype=torch.int64, pin_memory=device.type == "cuda"),
            arrived=None,
            count=count,
        )
        _lists(
            (blocks,),
            (
                *(keys, order, keys if scales is None else scales.float().contiguous(), plan.row_offsets, result.rows),
                *(lists, lists if result.scales is None else result.scales, result.sizes),
            ),
            (count, room // 4, tables),
            SHORT=SHORT,
            WEIGHTED=scales is not None,
            BLOCK=BLOCK,
        )
        result.arriving.copy_(result.sizes, non_blocking=True)
        if device.type == "cuda":
            unused = _events[device]
            result.arrived = unused.pop() if unused else torch.cuda.Event()
            result.arrived.record()
    return result


def blocks_of(items: int, size: int) -> int:
    """How many blocks of ``size`` it takes."""
    return -(-items // size)
