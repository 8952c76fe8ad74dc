"""Memory of sharded tables: allocated once, written once, in pages of 2 MiB."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LARGE = 4 << 20
"""Number of bytes from which a tensor gets memory of its own."""
PAGE = 2 << 20


class TableMemory(TorchFunctionMode):
    """Context in which to construct sharded tables that are filled afterwards.

    FBGEMM writes zeros to the memory of tables and state, and TorchRec draws uniform weights twice, although every weight is
    drawn anew by :func:`~dlrm_mtl.embeddings.tables.initialise`. In this context, zeros of large tensors on the CPU are those
    of new memory, which is not touched until it is used, and ``uniform_`` leaves a tensor as it is.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.uniform_ or func is nn.init.uniform_:
            return args[0] if args else kwargs["tensor"]
        if func is torch.zeros and len(args) == 1:
            found = _zeros(args[0], **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)


def _zeros(
    size: int | Sequence[int], *, device: torch.device | str | None = None, dtype: Any = None, **others: Any
) -> Tensor | None:
    """Zeros in new memory; None where ``torch.zeros`` is to make them."""
    if others or (device is not None and torch.device(device).type != "cpu"):
        return None
    dtype = dtype or torch.get_default_dtype()
    shape = (size,) if isinstance(size, int) else tuple(size)
    count = math.prod(shape)
    if not isinstance(dtype, torch.dtype) or count * dtype.itemsize < LARGE:
        return None
    return untouched_zeros(count, dtype).view(shape)


def untouched_zeros(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros [count] in memory that the system provides on first use, where possible in pages of 2 MiB.

    Such pages cost fewer faults, and looking up random rows in them fewer misses of the processor's address translation.
    """
    memory = mmap.mmap(-1, count * dtype.itemsize + PAGE)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=-address % PAGE)
