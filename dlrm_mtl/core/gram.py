"""Gram matrices of the tasks' gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ON_CPU, _ELSEWHERE = 1 << 16, 1 << 22
"""Number of float64 values held at a time: one fits a core's cache, the other fills an accelerator."""


def gram_of(gradients: Tensor | Sequence[Tensor | None], chunk: int | None = None) -> Tensor:
    """Inner products [T, T] float64 of T gradients, on their device.

    Gradients are read in chunks that are converted to float64 first. Products of float32 numbers are therefore exact, and
    only their sums are rounded, to float64. No float64 copy of a whole gradient is made.

    Args:
        gradients: one tensor whose first dimension is the task, [T, ...], or T tensors of one shape, with None for a task
            without a gradient.
        chunk: float64 values held at a time; chosen for the device by default.
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
    """Names of the tasks with a nan or an infinity in any gradient.

    Args:
        gram: Gram matrices of the tensors, [P, T, T] or [T, T].
        tasks: names of the T tasks.
    """
    squares = gram.diagonal(dim1=-2, dim2=-1).reshape(-1, len(tasks))
    finite = torch.isfinite(squares).all(dim=0).tolist()
    return [task for task, good in zip(tasks, finite, strict=True) if not good]
