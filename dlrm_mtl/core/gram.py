"""Gram matrices of the tasks' gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ON_CPU, _ELSEWHERE = 1 << 16, 1 << 22
"""float64 numbers held at a time: what a core's cache holds, and what fills an accelerator."""


def gram_of(gradients: Tensor | Sequence[Tensor | None], chunk: int | None = None) -> Tensor:
    """The inner products [T, T] float64 of T gradients, on their device.

    Gradients are read in chunks that are converted to float64 first. So products of float32 numbers are exact, and only the
    sums are rounded, to float64; no float64 copy of a whole gradient is made.

    Args:
        gradients: one tensor whose first dimension is the task, [T, ...], or T tensors of one shape, with None for a task
            without a gradient.
        chunk: float64 numbers held at a time; by default what suits the device.
    """
    tasks = len(gradients)
    rows = gradients.unbind() if isinstance(gradients, Tensor) else gradients
    present = [task for task, row in enumerate(rows) if row is not None]
    vectors = [row.detach().reshape(-1) for row in rows if row is not None]
    if not vectors:
        return torch.zeros(tasks, tasks, dtype=torch.float64)
    device, length = vectors[0].device, vectors[0].numel()
    width = min(length, max(1, (chunk or (_ON_CPU if device.type == "cpu" else _ELSEWHERE)) // len(vectors)))
    buffer = torch.empty(len(vectors), width, dtype=torch.float64, device=device)
    inner = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=device)
    for start in range(0, length, width or 1):
        part = buffer[:, : min(width, length - start)]
        for row, vector in zip(part, vectors, strict=True):
            row.copy_(vector[start : start + width])
        inner.addmm_(part, part.T)
    result = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)
    index = torch.tensor(present, device=device)
    result[index.unsqueeze(1), index] = (inner + inner.T) / 2
    return result


def not_finite_tasks(gram: Tensor, tasks: Sequence[str]) -> list[str]:
    """The tasks whose gradient has a nan or an infinity in some tensor.

    Args:
        gram: [P, T, T] or [T, T], the tensors' Gram matrices.
        tasks: the T names.
    """
    squares = gram.diagonal(dim1=-2, dim2=-1).reshape(-1, len(tasks))
    finite = torch.isfinite(squares).all(dim=0).tolist()
    return [task for task, good in zip(tasks, finite, strict=True) if not good]
