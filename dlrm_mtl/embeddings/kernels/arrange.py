"""Columns of several tensors side by side in one, in one pass over the memory, with the division of means in it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.embeddings.kernels.dispatch import kernels_for


@dataclass(frozen=True)
class ColumnRange:
    """Some columns of the result, which follow those of the part before."""

    source: int
    """Number of the tensor they come from."""
    column: int
    """First column there."""
    width: int
    """Number of columns."""
    counts: int | None = None
    """Row of the numbers of ids to divide by; None for a sum."""


def arrange(sources: Sequence[Tensor], parts: Sequence[ColumnRange], counts: Tensor) -> Tensor:
    """Concatenate columns of tensors on the CPU; those of a mean are divided by ``counts``, where these are above 1.

    Where the result is one of the tensors as it is, that one is returned.

    Args:
        sources: [B, any] float32 each; every column occurs in exactly one part.
        parts: columns of the result, in order.
        counts: [F, B] integers.

    Returns:
        [B, sum of widths] float32.
    """
    if len(sources) == 1 and all(part.counts is None for part in parts):
        starts = accumulate((part.width for part in parts), initial=0)
        if all(part.column == start for part, start in zip(parts, starts, strict=False)):
            return sources[0]
    if kernels_for("cpu") is not cpu:
        return plain(sources, parts, counts)
    result: Tensor = _Arrange.apply(parts, counts, *sources)
    return result


def plain(sources: Sequence[Tensor], parts: Sequence[ColumnRange], counts: Tensor) -> Tensor:
    """The same in PyTorch's operations: the reference."""
    columns = []
    for part in parts:
        column = sources[part.source].narrow(1, part.column, part.width)
        if part.counts is not None:
            column = column / counts[part.counts].clamp(min=1).unsqueeze(1)
        columns.append(column)
    return torch.cat(columns, dim=1)


class _Arrange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Sequence[ColumnRange], counts: Tensor, *sources: Tensor) -> Tensor:
        counts = counts.to(torch.int64).contiguous()
        ctx.parts, ctx.counts, ctx.widths = parts, counts, [source.shape[1] for source in sources]
        out = torch.empty(sources[0].shape[0], sum(part.width for part in parts))
        _move([source.float().contiguous() for source in sources], parts, counts, out, backward=False)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        gradient = gradients[0].contiguous()
        sources = [gradient.new_empty(gradient.shape[0], width) for width in ctx.widths]
        _move(sources, ctx.parts, ctx.counts, gradient, backward=True)
        return None, None, *sources


class _Columns(ctypes.Structure):
    _fields_ = [
        ("source", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("stride", "column", "width")),
        ("counts", ctypes.c_void_p),
    ]


def _move(sources: Sequence[Tensor], parts: Sequence[ColumnRange], counts: Tensor, out: Tensor, backward: bool) -> None:
    columns, column = (_Columns * len(parts))(), 0
    for number, part in enumerate(parts):
        source = sources[part.source]
        numbers = None if part.counts is None else counts[part.counts].data_ptr()
        columns[number] = _Columns(source.data_ptr() + 4 * part.column, source.shape[1], column, part.width, numbers)
        column += part.width
    cpu.call_arrange(columns, out, int(backward))
