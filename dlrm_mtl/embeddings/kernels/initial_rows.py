"""Initial weights of tables: normal numbers with the bits of ``torch.Tensor.normal_`` on the CPU of this machine.

Every block of rows has a generator of its own, so blocks are filled on several threads, and parts of a block without the rest
of it. PyTorch's bits depend on the processor: it has one form of the Box-Muller transform for AVX2 and another one for the
rest. The kernel in C++ has both, and serves only in the form that gives PyTorch's bits in a trial. Otherwise PyTorch fills
the blocks.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.embeddings.kernels.dispatch import VARIABLE

BLOCK_ROWS = 4096
"""Number of rows that share one random generator. Changing it changes the model of every seed."""
INTERFACE = 1
"""Value of ``dlrm_mtl_initial_rows_interface()`` in a library that fits this file."""
STAGED = 64
"""Number of blocks in memory at a time for tables that the kernel cannot write to."""
_TRIAL = 16
"""Columns of the trial: 65,536 numbers."""
_PARTS = np.dtype(
    [
        ("out", np.uint64),
        ("stride", np.int64),
        ("row", np.int64),
        ("rows", np.int64),
        ("column", np.int64),
        ("width", np.int64),
        ("columns", np.int64),
        ("seed", np.int64),
        ("std", np.float32),
        ("unused", np.float32),
    ]
)
"""InitialRows of csrc/initial_rows.h."""


@dataclass(frozen=True, eq=False)
class BlockPart:
    """Part of one block of rows of a table.

    Args:
        out: [rows, width] tensor to fill.
        row: its first row in the block, 0 to :data:`BLOCK_ROWS` - 1.
        column: its first column in the table.
        columns: columns of the table.
        std: standard deviation.
        seed: seed of the block's generator, 0 to 2^63 - 1.
    """

    out: Tensor
    row: int
    column: int
    columns: int
    std: float
    seed: int


def fill_blocks(parts: Sequence[BlockPart]) -> None:
    """Fill all ``parts`` from N(0, std^2), on ``torch.get_num_threads()`` threads."""
    direct = [part for part in parts if _is_writable(part.out)]
    _fill(direct)
    staged = [part for part in parts if not _is_writable(part.out)]
    for start in range(0, len(staged), STAGED):
        some = staged[start : start + STAGED]
        copies = [torch.empty(part.out.shape) for part in some]
        _fill([_with(part, copy) for part, copy in zip(some, copies, strict=True)])
        for part, copy in zip(some, copies, strict=True):
            part.out.copy_(copy)


def native_form() -> int | None:
    """Number of the kernel's form that has PyTorch's bits here: 0 scalar, 1 AVX2; None if PyTorch itself is to fill."""
    return None if os.environ.get(VARIABLE, "") == "reference" else _form()


def _fill(parts: list[BlockPart]) -> None:
    form = native_form()
    if form is not None:
        _call(parts, form, torch.get_num_threads())
    elif torch.get_num_threads() == 1 or len(parts) == 1:
        for part in parts:
            _fill_by_torch(part)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for _ in pool.map(_fill_by_torch, parts):
                pass


def _fill_by_torch(part: BlockPart) -> None:
    """Fill one part by PyTorch, which draws the whole block."""
    generator = torch.Generator().manual_seed(part.seed)
    values = torch.empty(BLOCK_ROWS, part.columns).normal_(0.0, 1.0, generator=generator).mul_(part.std)
    rows, width = part.out.shape
    part.out.copy_(values[part.row : part.row + rows, part.column : part.column + width])


def _call(parts: list[BlockPart], form: int, threads: int) -> bool:
    if not parts:
        return True
    function = _function()
    assert function is not None
    table = np.zeros(len(parts), _PARTS)
    table["out"] = [part.out.data_ptr() for part in parts]
    table["stride"] = [part.out.stride(0) for part in parts]
    table["row"] = [part.row for part in parts]
    table["rows"] = [part.out.shape[0] for part in parts]
    table["column"] = [part.column for part in parts]
    table["width"] = [part.out.shape[1] for part in parts]
    table["columns"] = [part.columns for part in parts]
    table["seed"] = [part.seed for part in parts]
    table["std"] = [part.std for part in parts]
    return bool(function(table.ctypes.data, len(parts), form, threads))


def _is_writable(out: Tensor) -> bool:
    return out.device.type == "cpu" and out.dtype == torch.float32 and (out.stride(1) == 1 or out.shape[1] == 1)


def _with(part: BlockPart, out: Tensor) -> BlockPart:
    return BlockPart(out, part.row, part.column, part.columns, part.std, part.seed)


@cache
def _form() -> int | None:
    """The form that gives PyTorch's bits in a trial."""
    if _function() is None:
        return None
    expected, found = torch.empty(BLOCK_ROWS, _TRIAL), torch.empty(BLOCK_ROWS, _TRIAL)
    trial = BlockPart(expected, 0, 0, _TRIAL, 0.1, 1)
    _fill_by_torch(trial)
    for form in (1, 0):
        if _call([_with(trial, found)], form, 1) and torch.equal(found, expected):
            return form
    return None


@cache
def _function() -> ctypes._NamedFuncPointer | None:
    """The function of the library; None if there is none that fits."""
    return cpu.part_function("initial_rows", INTERFACE, [ctypes.c_void_p, *[ctypes.c_int64] * 3])
