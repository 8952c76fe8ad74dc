"""Kernels in C++ for tables that are served, in the formats of :mod:`dlrm_mtl.embeddings.row_formats`.

They give the bits of a literal dequantisation followed by additions in the order of the ids, for every instruction set and
number of threads. The GIL is released.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.embeddings.kernels.dispatch import VARIABLE

INTERFACE = 2
"""Value of ``dlrm_mtl_stored_interface()`` in a library that fits this file."""


class _StoredTable(ctypes.Structure):
    _fields_ = [
        ("table", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("format", ctypes.c_int64),
    ]


class _StoredProblem(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int64), ("table", ctypes.c_int64), ("value", ctypes.c_int64)]


def stored_status() -> str | None:
    """Reason why these kernels cannot be used here, in one sentence; None if they can."""
    return cpu.native_status() or _function()[1]


def use_stored_kernels() -> bool:
    """True if these kernels are to be used: they are here, and the environment variable DLRM_MTL_KERNELS does not forbid it.

    Raises:
        RuntimeError: it asks for native kernels, and there are none.
    """
    wanted = os.environ.get(VARIABLE, "")
    reason = stored_status()
    if reason is not None and wanted == "native":
        raise RuntimeError(f"{VARIABLE} asks for native kernels, but {reason}")
    return reason is None and wanted != "reference"


def stored_sums(stored: Tensor, format: int, dim: int, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Sums [B, dim] float32 of the rows of bags.

    Args:
        stored: [rows, row_bytes] uint8.
        format: number of the format in ``FORMATS``.
        dim: number of columns.
        ids: [N] int64.
        offsets: [B] int64: first id of each bag; None for bags of one id each.

    Raises:
        IndexError: an id is not the number of a row.
        ValueError: offsets or shapes do not fit.
    """
    cpu.isa()
    function, reason = _function()
    if function is None:
        raise RuntimeError(reason)
    ids, starts = ids.contiguous(), None if offsets is None else offsets.contiguous()
    if ids.dtype != torch.int64 or (starts is not None and starts.dtype != torch.int64):
        raise ValueError(f"ids are {ids.dtype}, offsets {None if starts is None else starts.dtype}; int64 is expected")
    if not stored.is_contiguous():
        raise ValueError("rows must lie without gaps")
    bags = len(ids) if starts is None else len(starts)
    out = torch.empty(bags, dim)
    table = _StoredTable(stored.data_ptr(), stored.shape[0], stored.shape[1], dim, format)
    problem = _StoredProblem()
    if not function(
        ctypes.byref(table),
        ids.data_ptr(),
        len(ids),
        None if starts is None else starts.data_ptr(),
        bags,
        out.data_ptr(),
        torch.get_num_threads(),
        ctypes.byref(problem),
    ):
        if problem.kind == 1:
            raise IndexError(f"id {problem.value} is not one of the {stored.shape[0]} rows")
        if problem.kind == 4:
            raise MemoryError("the lookup found no memory")
        raise ValueError("offsets descend or point outside of the ids, or a row has another size than its format")
    return out


@cache
def _function() -> tuple[ctypes._NamedFuncPointer | None, str | None]:
    """The function of the library, or the reason why there is none."""
    reason = cpu.native_status()
    if reason is not None:
        return None, reason
    library = ctypes.CDLL(str(cpu.LIBRARY))
    try:
        found = library.dlrm_mtl_stored_interface()
    except AttributeError:
        found = 0
    if found != INTERFACE:
        return None, f"the native kernels are of another version ({found}, not {INTERFACE}): install the package again"
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function = library.dlrm_mtl_stored_lookup
    function.argtypes = [pointer, pointer, number, pointer, number, pointer, number, pointer]
    function.restype = ctypes.c_bool
    return function, None
