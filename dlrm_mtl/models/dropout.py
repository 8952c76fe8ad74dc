"""Dropout and negatives that do not depend on the number of processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.core.batch_random import BatchRandom, compiled_uniform

NEGATIVES_LAYER = 1 << 33
"""Layer number of the draws of negatives; differs from those of dropout layers and from ``tasks.targets.SAMPLING_LAYER``."""


class LaneNegatives(nn.Module):
    """Uniformly drawn ids, the same for each row on any number of processes, see :class:`BatchRandom`.

    Without a stream (in a foreign trainer) they come from PyTorch's generator.

    Args:
        ids: number of ids; they run from 0 to ids - 1.
        count: number of draws for each row.
    """

    layer = NEGATIVES_LAYER

    def __init__(self, ids: int, count: int) -> None:
        super().__init__()
        self.ids = ids
        self.count = count
        self.stream: BatchRandom | None = None

    def forward(self, rows: int, device: torch.device) -> Tensor:
        """Draw [rows, count] int64."""
        if self.stream is None:
            return torch.randint(self.ids, (rows, self.count), device=device)
        draws = self.stream.uniform(self.layer, rows, 2 * self.count, device).double()
        # A draw is a multiple of 2^-24, too coarse for a large vocabulary: two draws give 48 bits.
        fine = draws[:, : self.count] + draws[:, self.count :] * 2.0**-24
        return (fine * self.ids).long().clamp(max=self.ids - 1)

    def extra_repr(self) -> str:
        """Show the sizes in the module's printed form."""
        return f"ids={self.ids}, count={self.count}"


class LaneDropout(nn.Module):
    """Dropout of rows [B, ...] whose mask is a function of (seed, layer, step, lane), see :class:`BatchRandom`.

    Without a stream (in a foreign trainer) it is ordinary dropout.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.layer = 0
        self.stream: BatchRandom | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of ``x`` [B, ...] with probability p and scale the others by 1 / (1 - p); identity in evaluation."""
        if not self.training or self.p == 0.0:
            return x
        if self.stream is None:
            return F.dropout(x, self.p)
        width = x.shape[1:].numel()
        if torch.compiler.is_compiling():
            draws = compiled_uniform(x, self.stream.number, self.layer, width)
        else:
            draws = self.stream.uniform(self.layer, x.shape[0], width, x.device)
        return x * (draws >= self.p).to(x.dtype).reshape(x.shape) / (1.0 - self.p)

    def extra_repr(self) -> str:
        """Show p in the module's printed form."""
        return f"p={self.p}"


def connect_dropout(model: nn.Module, stream: BatchRandom) -> None:
    """Let every :class:`LaneDropout` in ``model`` draw from ``stream``, each with its own layer number; also negatives."""
    layers = [module for module in model.modules() if isinstance(module, LaneDropout)]
    for number, layer in enumerate(layers):
        layer.layer = number
        layer.stream = stream
    for module in model.modules():
        if isinstance(module, LaneNegatives):
            module.stream = stream
