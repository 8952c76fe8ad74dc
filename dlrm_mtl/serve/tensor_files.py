"""Whole tensors in one safetensors file: written piece by piece, read by memory-mapping."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from dlrm_mtl.checkpoint.format import DTYPES, header
from dlrm_mtl.core.errors import UserError

REMEDY = "the bundle was changed or is damaged: export it again"
"""End of error sentences about a damaged file of a bundle."""
PIECE = 4 << 20
"""Number of bytes that are copied and written at a time."""
HEADER_LIMIT = 100 << 20
"""Size in bytes of the longest header that safetensors allows."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], run: str, step: int) -> None:
    """Write ``tensors`` in their order; at most one piece is copied.

    Args:
        file: file to write to.
        tensors: tensors by name, of any type in :data:`~dlrm_mtl.checkpoint.format.DTYPES`.
        run: name of the run, for the header.
        step: step of the checkpoint, for the header.
    """
    file.write(header({name: (_NAMES[t.dtype], t.shape, t.nbytes) for name, t in tensors.items()}, run, step))
    for tensor in tensors.values():
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), PIECE):
            file.write(flat[start : start + PIECE].cpu().numpy().data)


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors in a safetensors file, by name; their bytes are read on use, and shared between processes.

    Raises:
        UserError: the file is not one, or its header does not fit it.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, HEADER_LIMIT))
    start = 8 + length
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        places = {name: _place(entry, size - start) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: has no header of a safetensors file; {REMEDY}.") from None
    if size == start:
        return {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape, _, _) in places.items()}
    # Copy-on-write, and nothing writes: torch warns of read-only memory.
    content = torch.from_numpy(np.memmap(path, np.uint8, mode="c", offset=start))
    return {name: content[first:last].view(dtype).view(shape) for name, (dtype, shape, first, last) in places.items()}


def _place(entry: Any, size: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    dtype, shape, (first, last) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, first, last)):
        raise ValueError
    if last > size or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError
    return dtype, shape, first, last
