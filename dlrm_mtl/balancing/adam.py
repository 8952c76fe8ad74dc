"""Adam for the few numbers that some balancers learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallAdam(nn.Module):
    """Steps of Adam (Kingma and Ba, 2015; beta 0.9 and 0.999, eps 1e-8) with its moments in buffers."""

    first: Tensor
    second: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.register_buffer("first", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("second", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def update(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Return ``values`` after one step against ``gradient``; both float64 and of the shape given at construction."""
        self.count += 1
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient**2, 0.001)
        count = int(self.count)
        mean = self.first / (1 - 0.9**count)
        return values - self.learning_rate * mean / ((self.second / (1 - 0.999**count)).sqrt() + 1e-8)
