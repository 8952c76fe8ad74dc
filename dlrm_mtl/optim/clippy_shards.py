"""Sharded parameters (DTensor, FSDP2): the local part, and values reduced over all parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    from torch.distributed.tensor import DTensor
else:  # a torch build without torch.distributed has no sharded tensors

    class DTensor:  # type: ignore[no-redef]
        """Placeholder class without instances."""


def local_part(tensor: Tensor) -> Tensor:
    """Part of ``tensor`` in this process, in the same memory; ``tensor`` itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: Tensor) -> Tensor | None:
    """Gradient of the part of ``parameter`` in this process, if there is one."""
    gradient = parameter.grad
    if isinstance(gradient, DTensor) and gradient.placements != parameter.placements:  # type: ignore[attr-defined]
        gradient = gradient.redistribute(parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    return None if gradient is None else local_part(gradient)


def reduce_largest(values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Largest of each column's values over the processes that hold parts of its parameter.

    One all-reduce for all parameters that are sharded alike (one mesh, the same mesh dimensions), for each of those
    dimensions; none if nothing is sharded. All processes of a mesh must call this together.

    Args:
        values: [K, P].
        parameters: P parameters.

    Returns:
        [K, P].
    """
    alike: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for column, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            split = tuple(
                dimension
                for dimension, placement in enumerate(parameter.placements)
                if not placement.is_replicate() and mesh.size(dimension) > 1
            )
            if split:
                alike.setdefault((mesh, split), []).append(column)
    for (mesh, split), columns in alike.items():
        part = values if len(columns) == len(parameters) else torch.stack([values[:, c] for c in columns], dim=1)
        for dimension in split:
            dist.all_reduce(part, op=dist.ReduceOp.MAX, group=mesh.get_group(dimension))
        if part is not values:
            whole = list(values.unbind(dim=1))
            for column, value in zip(columns, part.unbind(dim=1), strict=True):
                whole[column] = value
            values = torch.stack(whole, dim=1)
    return values
