"""Formats of stored rows: float32, float16, and whole numbers of 8 or 4 bits with a scale and an offset for each row.

A quantised row is 2 bytes scale, 2 bytes offset, both bfloat16 and little-endian, and its codes: one byte each, or two in a
byte, the even column in the low bits. The value of code q is ``q * scale + offset``, computed in float32. The product is
exact, because a code has 8 bits and a scale 8 significant bits, so the sum is rounded once. Native kernels look rows up if they
are there, and plain PyTorch does otherwise; both give the same bits.

The offset is the row's minimum rounded down, the scale the range from there to the maximum, divided by the largest code and
rounded up: so every value of the row lies between the first and the last code. The code of a value is the nearest by the
*stored* scale and offset, ties to even. Every operation is correctly rounded, so a row has the same bytes on every machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dlrm_mtl.embeddings.kernels.stored import stored_sums, use_stored_kernels

FormatName = Literal["fp32", "fp16", "int8", "int4"]
"""Name of a format of rows."""
HEAD = 4
"""Number of bytes of a quantised row before its codes."""
LARGEST = 2.0**100
"""Largest absolute value that a quantised row may hold."""
PIECE = 1 << 16
"""Number of rows that are encoded at a time."""


class RowFormat(ABC):
    """A format of rows: encoding, and lookup of encoded rows [rows, row_bytes] uint8."""

    name: FormatName
    number: int
    """Number of the format in the native kernels."""
    limit: float
    """Largest absolute value that can be encoded."""

    @abstractmethod
    def row_bytes(self, dim: int) -> int:
        """Size in bytes of a row with ``dim`` columns."""

    @abstractmethod
    def _encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Encoded rows [K, row_bytes] of ``values`` [K, dim], which are in range."""

    @abstractmethod
    def plain_vectors(self, stored: Tensor, dim: int, ids: Tensor) -> Tensor:
        """The same as :meth:`vectors`, in plain PyTorch."""

    def vectors(self, stored: Tensor, dim: int, ids: Tensor) -> Tensor:
        """Rows [N, dim] float32.

        Args:
            stored: [rows, row_bytes] uint8.
            dim: number of columns.
            ids: [N] int64, numbers of rows.

        Raises:
            IndexError: an id is not the number of a row.
        """
        if use_stored_kernels():
            return stored_sums(stored, self.number, dim, ids)
        return self.plain_vectors(stored, dim, ids)

    def sums(self, stored: Tensor, dim: int, ids: Tensor, offsets: Tensor) -> Tensor:
        """Sums [B, dim] float32 of the rows of bags, added in the order of the ids; 0 for an empty bag.

        Args:
            stored: [rows, row_bytes] uint8.
            dim: number of columns.
            ids: [N] int64, numbers of rows.
            offsets: [B] int64: first id of each bag.

        Raises:
            IndexError: an id is not the number of a row.
        """
        if use_stored_kernels():
            return stored_sums(stored, self.number, dim, ids, offsets)
        return sums_of(self.plain_vectors(stored, dim, ids), offsets)

    def encode(self, values: Tensor, first: int = 0) -> Tensor:
        """Encoded rows [K, row_bytes] uint8; a row's bytes depend on its values alone.

        Args:
            values: [K, dim] float32 on the CPU.
            first: number of the first row, for errors.

        Raises:
            ValueError: a value is not finite, or its absolute value exceeds :attr:`limit`; the row is named.
        """
        numbers = values.detach().numpy()
        out = np.empty((len(numbers), self.row_bytes(numbers.shape[1])), np.uint8)
        for start in range(0, len(numbers), PIECE):
            piece = numbers[start : start + PIECE]
            good = np.abs(piece) <= self.limit
            if not good.all():
                row, column = np.argwhere(~good)[0].tolist()
                raise ValueError(
                    f"row {first + start + row} holds {piece[row, column]:g}, which {self.name} cannot hold"
                )
            out[start : start + PIECE] = self._encode(piece)
        return torch.from_numpy(out)

    def decode(self, stored: Tensor, dim: int) -> Tensor:
        """All rows [rows, dim] float32."""
        return self.vectors(stored, dim, torch.arange(len(stored)))


def sums_of(vectors: Tensor, offsets: Tensor) -> Tensor:
    """Sums [B, D] of ``vectors`` [N, D] of bags that begin at ``offsets`` [B], added in their order."""
    return F.embedding_bag(torch.arange(len(vectors)), vectors, offsets, mode="sum")


class FloatRows(RowFormat):
    """Rows of float32, or of float16 rounded to nearest."""

    def __init__(self, name: FormatName, number: int, dtype: torch.dtype) -> None:
        self.name, self.number, self._dtype = name, number, dtype
        self.limit = float(torch.finfo(dtype).max) if dtype != torch.float32 else float("inf")

    def row_bytes(self, dim: int) -> int:
        """Size in bytes of a row with ``dim`` columns."""
        return dim * self._dtype.itemsize

    def encode(self, values: Tensor, first: int = 0) -> Tensor:
        """Encoded rows; those of float32 are the values as they are, also if they are not finite."""
        if self._dtype == torch.float32:
            return values.detach().contiguous().view(torch.uint8)
        return super().encode(values, first)

    def _encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(values).astype(np.float16).view(np.uint8)

    def vectors(self, stored: Tensor, dim: int, ids: Tensor) -> Tensor:
        """Rows [N, dim] float32."""
        return self.plain_vectors(stored, dim, ids)

    def plain_vectors(self, stored: Tensor, dim: int, ids: Tensor) -> Tensor:
        """Rows [N, dim] float32."""
        return torch.index_select(stored.view(self._dtype), 0, ids).float()

    def sums(self, stored: Tensor, dim: int, ids: Tensor, offsets: Tensor) -> Tensor:
        """Sums [B, dim] float32 of the rows of bags."""
        if self._dtype != torch.float32:
            return super().sums(stored, dim, ids, offsets)
        # Not torch.nn.functional's, whose checks take longer than a request's lookup.
        return torch.embedding_bag(stored.view(torch.float32), ids, offsets)[0]  # 0: sums


class QuantisedRows(RowFormat):
    """Rows of whole numbers of ``bits`` bits, 8 or 4."""

    limit = LARGEST

    def __init__(self, name: FormatName, number: int, bits: int) -> None:
        self.name, self.number, self.bits = name, number, bits
        self.levels = (1 << bits) - 1
        """Largest code."""

    def row_bytes(self, dim: int) -> int:
        """Size in bytes of a row with ``dim`` columns."""
        return HEAD + -(-dim * self.bits // 8)

    def _encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        offset = _outward(values.min(axis=1), up=False)
        scale = _outward((values.max(axis=1) - offset) / np.float32(self.levels), up=True)
        divisor = np.where(scale == 0, np.float32(1), scale)
        codes = np.rint((values - offset[:, None]) / divisor[:, None]).clip(0, self.levels).astype(np.uint8)
        head = np.stack([_high_half(scale), _high_half(offset)], axis=1).view(np.uint8)
        return np.concatenate([head, codes if self.bits == 8 else _pairs(codes)], axis=1)

    def plain_vectors(self, stored: Tensor, dim: int, ids: Tensor) -> Tensor:
        """Rows [N, dim] float32."""
        rows = torch.index_select(stored, 0, ids)
        head = rows[:, :HEAD].clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()
        codes = rows[:, HEAD:]
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)[:, :dim]
        return codes.float() * head[:, :1] + head[:, 1:]


def _outward(values: NDArray[np.float32], up: bool) -> NDArray[np.float32]:
    """The nearest numbers that bfloat16 holds and that are not smaller (``up``), or not larger."""
    bits = values.view(np.int32)
    cut = bits & ~0xFFFF  # towards zero
    away = ((values < 0) != up) & (cut != bits)
    rounded: NDArray[np.float32] = np.where(away, cut + 0x10000, cut).astype(np.int32).view(np.float32)
    return rounded


def _high_half(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """[K] bits of values that bfloat16 holds."""
    return (values.view(np.uint32) >> 16).astype("<u2")


def _pairs(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[K, ceil(dim / 2)] bytes of codes [K, dim] of 4 bits."""
    low, high = codes[:, 0::2], codes[:, 1::2]
    packed = low.copy()
    packed[:, : high.shape[1]] |= high << 4
    return packed


FORMATS: dict[str, RowFormat] = {
    each.name: each
    for each in (
        FloatRows("fp32", 0, torch.float32),
        FloatRows("fp16", 1, torch.float16),
        QuantisedRows("int8", 2, bits=8),
        QuantisedRows("int4", 3, bits=4),
    )
}
"""The formats by name."""
assert set(FORMATS) == set(get_args(FormatName))
