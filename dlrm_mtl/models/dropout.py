"""Dropout that does not depend on the number of processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.core.batch_random import BatchRandom

NEGATIVES_LAYER = 1 << 33
"""Numbers the draws of negatives, beside those of the dropout layers and of ``tasks.targets.SAMPLING_LAYER``."""


class LaneNegatives(nn.Module):
    """Ids drawn uniformly, for each row the same on any number of processes, see :class:`BatchRandom`.

    Without a stream (in somebody else's trainer) they come from PyTorch's generator.

    Args:
        ids: they run from 0 to ids - 1.
        count: how many are drawn for each row.
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
        # A draw is a multiple of 2^-24, too coarse for a large vocabulary: two make one of 48 bits.
        fine = draws[:, : self.count] + draws[:, self.count :] * 2.0**-24
        return (fine * self.ids).long().clamp(max=self.ids - 1)

    def extra_repr(self) -> str:
        """Show the sizes in the module's printed form."""
        return f"ids={self.ids}, count={self.count}"


class LaneDropout(nn.Module):
    """Dropout of rows [B, ...] whose mask is a function of (seed, layer, step, lane), see :class:`BatchRandom`.

    Without a stream (in somebody else's trainer) it is ordinary dropout.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.layer = 0
        self.stream: BatchRandom | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of ``x`` [B, ...] with probability p, scale the others by 1 / (1 - p); nothing in evaluation."""
        if not self.training or self.p == 0.0:
            return x
        if self.stream is None:
            return F.dropout(x, self.p)
        draws = self.stream.uniform(self.layer, x.shape[0], x[0].numel(), x.device)
        return x * (draws >= self.p).to(x.dtype).reshape(x.shape) / (1.0 - self.p)

    def extra_repr(self) -> str:
        """Show p in the module's printed form."""
        return f"p={self.p}"


def connect_dropout(model: nn.Module, stream: BatchRandom) -> None:
    """Let every :class:`LaneDropout` in ``model`` draw from ``stream``, each as a layer of its own; negatives as well."""
    layers = [module for module in model.modules() if isinstance(module, LaneDropout)]
    for number, layer in enumerate(layers):
        layer.layer = number
        layer.stream = stream
    for module in model.modules():
        if isinstance(module, LaneNegatives):
            module.stream = stream
