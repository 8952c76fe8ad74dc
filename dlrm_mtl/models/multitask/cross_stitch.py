"""Cross-stitch units between the layers of tasks (Misra et al., CVPR 2016, arXiv 1604.03539)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from dlrm_mtl.core.registry import register
from dlrm_mtl.models.blocks import Block, LevelsConfig, ParallelMLP

Start = Literal["near_identity", "uniform", "ones"]


class CrossStitchConfig(LevelsConfig):
    """A stack of layers for each task; after every level a learned T x T matrix mixes the tasks' outputs."""

    name: Literal["cross_stitch"] = "cross_stitch"
    start: Start = "near_identity"
    """Initial T x T matrices. `near_identity`: 0.9 for a task's own output and 0.1 shared among the others, the paper's
    choice. `uniform`: U(-1/sqrt(T), 1/sqrt(T)), as in the code published with AdaTT. `ones`: the plain sum, as in
    LibMTL."""


@register("architecture", "cross_stitch", config=CrossStitchConfig, order=70)
class CrossStitch(Block):
    """x^l_t = sum_s A^l_{t,s} MLP^l_s(x^{l-1}_s), equation 1 of the paper, after every level, the last included.

    A^l is one T x T matrix for all channels and rows, without softmax.

    Parameters: sum_l [T P(d_{l-1}; h_l) + T^2], where P counts a stack with biases.
    """

    def __init__(self, config: CrossStitchConfig, in_features: int, tasks: int) -> None:
        super().__init__()
        self.stacks, self.stitches = nn.ModuleList(), nn.ParameterList()
        width = in_features
        for stack in config.stacks():
            self.stacks.append(ParallelMLP(tasks, width, stack))
            self.stitches.append(nn.Parameter(_stitch(config.start, tasks)))
            width = stack.layers[-1]
        self.out_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, T, d]."""
        slots = features
        for stack, stitch in zip(self.stacks, self.stitches, strict=True):
            slots = torch.einsum("ts,bsd->btd", stitch, stack(slots))
        return slots


def _stitch(start: Start, tasks: int) -> Tensor:
    if start == "ones":
        return torch.ones(tasks, tasks)
    if start == "uniform":
        return torch.empty(tasks, tasks).uniform_(-1.0, 1.0) / math.sqrt(tasks)
    if tasks == 1:
        return torch.ones(1, 1)
    return torch.full((tasks, tasks), 0.1 / (tasks - 1)).fill_diagonal_(0.9)
