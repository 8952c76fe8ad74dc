"""Whole tensors in one safetensors file: written piece by piece, read by memory-mapping."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
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
    places = tensor_places(path)
    if not any(place.stop > place.start for place in places.values()):
        return {name: torch.empty(place.shape, dtype=place.dtype) for name, place in places.items()}
    # Copy-on-write, and nothing writes: torch warns of read-only memory.
    content = torch.from_numpy(np.memmap(path, np.uint8, mode="c"))
    return {name: place.of(content) for name, place in places.items()}


@dataclass(frozen=True)
class TensorPlace:
    """Position and type of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    stop: int

    def of(self, content: Tensor) -> Tensor:
        """The tensor, given the content of the file, [size] uint8."""
        return content[self.start : self.stop].view(self.dtype).view(self.shape)


def header_size(path: Path) -> int:
    """Size in bytes of the header that a safetensors file says it has."""
    with open(path, "rb") as file:
        return 8 + min(int.from_bytes(file.read(8), "little"), HEADER_LIMIT)


def tensor_places(path: Path) -> dict[str, TensorPlace]:
    """Positions of the tensors in a safetensors file, by name.

    Raises:
        UserError: the file is not one, or its header does not fit it.
    """
    size, start = path.stat().st_size, header_size(path)
    with open(path, "rb") as file:
        text = file.read(start)[8:]
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        return {name: _place(entry, start, size) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: has no header of a safetensors file; {REMEDY}.") from None


def _place(entry: Any, start: int, size: int) -> TensorPlace:
    dtype, shape, (first, last) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, first, last)):
        raise ValueError
    if start + last > size or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError
    return TensorPlace(dtype, shape, start + first, start + last)
