"""Sorting the ids of a batch by their rows, on CUDA."""

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
"""Number of occurrences above which a row is summed in pieces, by several programs."""
BLOCK = 1024
"""Number of items of a program that processes single ids; their counts are packed for this size."""
MOST_IDS = 2**31 - 2 * BLOCK
"""Largest number of ids for 32 bits."""

# Products are rounded before they are added, as on the CPU.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

_keys = Kernel(kernels.keys_kernel, **OPTIONS)
_count = Kernel(kernels.count_kernel, **OPTIONS)
_lists = Kernel(kernels.lists_kernel, **OPTIONS)


@dataclass
class Occurrences:
    """The ids of a batch, sorted by row, and the rows that they touch."""

    rows: Tensor
    """[N] int64: the U touched rows, numbered within their table, ascending by table; the rest is not set."""
    lists: Tensor
    """int32: seven concatenated lists of ``room`` elements each.

    0. For each touched row that occurs once: the start of its gradient, in units. For a repeated row: -1 - its number.
    1. For each repeated row: its position among the touched rows.
    2. For each repeated row: the start of its occurrences in list 5.
    3. For each repeated row: the end of its occurrences in list 5.
    4. For each row with more than SHORT occurrences: its position among the repeated rows.
    5. For each occurrence of a repeated row: the start of its gradient, in units.
    6. For each id, before sorting: the start of its gradient, in units.

    The counts of the blocks of ids follow.
    """
    room: int
    """Size of each list: a multiple of 4, and at least N."""
    scales: Tensor | None
    """[2, room] float32: the factor of each touched row (1 if repeated), and of each occurrence."""
    sizes: Tensor
    """[2 T + 4] int64: start of each table's rows in ``rows``, and U; start of each table's repeated rows, and their
    number; number of ids inside their tables; number of rows with more than SHORT occurrences."""
    arriving: Tensor
    """``sizes`` on the CPU, valid after ``arrived``."""
    arrived: torch.cuda.Event | None
    """Event of the copy; None on a CPU."""
    count: int
    """Number of ids N."""
    _host_sizes: list[int] = field(default_factory=list)

    def host_sizes(self) -> list[int]:
        """Wait for ``sizes`` and return it."""
        if not self._host_sizes:
            if self.arrived is not None:
                self.arrived.synchronize()
                _events[self.arrived.device].append(self.arrived)
                self.arrived = None
            self._host_sizes = self.arriving.tolist()
        return self._host_sizes


# Creating an event takes longer than any use of it. An event belongs to a device.
_events: defaultdict[torch.device, list[torch.cuda.Event]] = defaultdict(list)


class Segments(NamedTuple):
    """Segments of ids, and the locations of their gradients; see ``keys_kernel``."""

    offsets: Tensor
    bags: int
    bag_units: int
    tables: Tensor
    sources: Tensor
    pooled: bool


def sort_by_row(plan: Plan, indices: Tensor, segments: Segments, scales: Tensor | None = None) -> Occurrences | None:
    """Sort ids by their rows, stably; None if there are no ids. Does not wait for the device.

    Args:
        plan: sizes and offsets of the tables.
        indices: [N] int64 or int32, each within its table.
        segments: tables of the ids, and locations of their gradients.
        scales: [N] factor of each id's gradient; default: 1.

    Raises:
        ValueError: there are too many ids for 32 bits.
    """
    count, device, tables = len(indices), indices.device, plan.tables
    if not count:
        return None
    if count > MOST_IDS:
        raise ValueError(f"a batch of {count} ids: the CUDA kernels take up to {MOST_IDS} at once")
    if segments.bags * segments.bag_units > MOST_IDS:
        raise ValueError(f"{segments.bags} bags of {plan.width} columns are more than the CUDA kernels can address")
    # The time of radix sort grows with the bytes of a key.
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
    """Number of blocks of ``size`` items."""
    return -(-items // size)
