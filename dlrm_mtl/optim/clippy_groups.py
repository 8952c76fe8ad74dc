"""Batches of parameters for a dense Clippy step, and their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Form = Literal["native", "blocked", "foreach"]
"""Form of the passes over memory: in C++, one tensor after the other on the CPU, or lists of tensors."""


class LocalParameter(NamedTuple):
    """A parameter that a step updates, or this process's part of it."""

    position: int
    weight: Tensor
    gradient: Tensor
    accumulator: Tensor


@dataclass(frozen=True)
class ParameterBatch:
    """Parameters that are processed together: of one group, device and dtype."""

    group: int
    form: Form
    entries: list[LocalParameter]

    @property
    def positions(self) -> list[int]:
        """Position of each parameter among all of the optimizer."""
        return [entry.position for entry in self.entries]

    @property
    def on_cpu(self) -> bool:
        """True for a form that reads numbers on the host and does nothing in a skipped step."""
        return self.form != "foreach"


def touched_size(gradient: Tensor) -> int:
    """Number of elements that a step touches."""
    return gradient.numel() if gradient.layout == torch.strided else gradient._values().numel()


def touched(entries: list[LocalParameter]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, gradients and accumulators; copies of the touched rows for sparse gradients."""
    weights, gradients, accumulators = [], [], []
    for _, weight, gradient, accumulator in entries:
        if gradient.layout != torch.strided:
            where = tuple(gradient.indices())
            weight, gradient, accumulator = weight[where], gradient.values(), accumulator[where]
        weights.append(weight)
        gradients.append(gradient)
        accumulators.append(accumulator)
    return weights, gradients, accumulators


def put_back(entries: list[LocalParameter], weights: list[Tensor], accumulators: list[Tensor]) -> None:
    """Write updated copies of rows back to their tensors."""
    for entry, weight, accumulator in zip(entries, weights, accumulators, strict=True):
        if entry.gradient.layout != torch.strided:
            where = tuple(entry.gradient.indices())  # rows are distinct: the gradient is coalesced
            entry.weight[where] = weight
            entry.accumulator[where] = accumulator
