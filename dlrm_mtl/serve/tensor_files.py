"""Whole tensors in one safetensors file: written piece by piece, read by mapping the file into memory."""

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
"""The end of sentences about a file of a bundle that is not as it was written."""
PIECE = 4 << 20
"""Bytes that are copied and written at a time."""
HEADER_LIMIT = 100 << 20
"""Bytes of the longest header that safetensors allows."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], run: str, step: int) -> None:
    """Write ``tensors`` in their order; no more than a piece of one is copied.

    Args:
        file: to write to.
        tensors: by name, of any type in :data:`~dlrm_mtl.checkpoint.format.DTYPES`.
        run: name of the run, for the header.
        step: of the checkpoint, for the header.
    """
    file.write(header({name: (_NAMES[t.dtype], t.shape, t.nbytes) for name, t in tensors.items()}, run, step))
    for tensor in tensors.values():
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), PIECE):
            file.write(flat[start : start + PIECE].cpu().numpy().data)


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, by name; their bytes are read when they are used, and shared between processes.

    Raises:
        UserError: the file is none, or its header does not fit it.
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
    # Copied when written to, which nothing does: torch warns of memory that it must not write to.
    content = torch.from_numpy(np.memmap(path, np.uint8, mode="c", offset=start))
    return {name: content[first:last].view(dtype).view(shape) for name, (dtype, shape, first, last) in places.items()}


def _place(entry: Any, size: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    dtype, shape, (first, last) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, first, last)):
        raise ValueError
    if last > size or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError
    return dtype, shape, first, last
