"""Memory for tables larger than this machine's: pages come into being when a row is first written."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LARGE = 16 << 20
"""Bytes from which a tensor is not filled."""

_NO_RESERVE = 0x4000
"""Linux' MAP_NORESERVE: the mapping may be larger than the memory."""

_ALLOCATIONS = {"empty", "zeros", "ones", "full", "empty_strided", "empty_like", "zeros_like", "new_empty", "new_zeros"}
_FILLS = {"uniform_", "normal_", "zero_", "fill_"}


class UntouchedMemory(TorchDispatchMode):
    """A context in which tensors on the CPU of at least :data:`LARGE` bytes are zeros that take no memory until written.

    Filling such a tensor as a whole does nothing. A table of any size can then be built, and a step takes memory only for
    the rows that it touches.
    """

    def __init__(self) -> None:
        super().__init__()
        self._addresses: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, or its replacement for a large tensor."""
        options = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name in _ALLOCATIONS:
            # On the meta device the operation only tells shape and type.
            wanted = func(*args, **{**options, "device": torch.device("meta"), "pin_memory": None})
            like = next((each for each in args if isinstance(each, Tensor)), None)
            device = options.get("device") or (like.device if like is not None else torch.device("cpu"))
            if torch.device(device).type == "cpu" and wanted.numel() * wanted.element_size() >= LARGE:
                return self._mapped(wanted)
        if func.namespace == "aten" and name in _FILLS and args[0].untyped_storage().data_ptr() in self._addresses:
            return args[0]
        return func(*args, **options)

    def _mapped(self, wanted: Tensor) -> Tensor:
        size = wanted.numel() * wanted.element_size()
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        flat = torch.frombuffer(memory, dtype=wanted.dtype)
        self._addresses.add(flat.untyped_storage().data_ptr())
        return flat.as_strided(wanted.shape, wanted.stride())
