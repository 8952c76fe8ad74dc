"""The stacks of linear layers that architectures are made of.

Shapes: B rows, N stacks of equal shape computed together, D input width, d output width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.config.strict import Strict
from dlrm_mtl.models.dropout import LaneDropout

ActivationName = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu"]
Norm = Literal["none", "layer"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
}


class Block(nn.Module):
    """A module that says how wide its output is."""

    out_features: int
    """Size of the output's last dimension."""


class StackConfig(Strict):
    """A stack of linear layers: each followed by norm, activation and dropout."""

    layers: list[int]
    """Widths of the layers; an empty list is the identity."""
    activation: ActivationName = "relu"
    """Applied after every layer."""
    norm: Norm = "none"
    """`layer`: layer normalisation before the activation. It sees one row at a time, so it does not depend on the batch."""
    dropout: float = 0.0
    """Share of every layer's outputs that is dropped in training, in [0, 1)."""

    def model_post_init(self, _: object) -> None:
        """Refuse widths and dropout rates outside their range."""
        if any(width <= 0 for width in self.layers):
            raise ValueError(f"layers {self.layers} holds a width that is not positive; widths are positive integers.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout {self.dropout} is not in [0, 1); use 0 for none.")


class ParallelLinear(nn.Module):
    """N linear layers of equal shape as one batched matrix product.

    ``weight`` is [N, d, D] and ``bias`` [N, d]: layer n's parameters are the n-th slices. Initialised as N ``nn.Linear``.
    """

    def __init__(self, count: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, N, D], or [B, D] read by all N layers, to [B, N, d]."""
        count, out_features, in_features = self.weight.shape
        if x.dim() == 2:
            flat = F.linear(x, self.weight.reshape(count * out_features, in_features), self.bias.reshape(-1))
            return flat.view(x.shape[0], count, out_features)
        return torch.baddbmm(self.bias.unsqueeze(1), x.transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1)


class ParallelLayerNorm(nn.Module):
    """N layer normalisations of width d, over the last dimension of [B, N, d]."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count, width))
        self.bias = nn.Parameter(torch.zeros(count, width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, N, d]."""
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


class ParallelMLP(Block):
    """N stacks of linear layers of equal shape, computed together: [B, D] or [B, N, D] -> [B, N, d]."""

    def __init__(self, count: int, in_features: int, config: StackConfig) -> None:
        super().__init__()
        self.count = count
        self.out_features = config.layers[-1] if config.layers else in_features
        self.layers = nn.Sequential()
        for width in config.layers:
            self.layers.append(ParallelLinear(count, in_features, width))
            if config.norm == "layer":
                self.layers.append(ParallelLayerNorm(count, width))
            self.layers.append(ACTIVATIONS[config.activation]())
            self.layers.append(LaneDropout(config.dropout))
            in_features = width

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, D], read by all N stacks, or [B, N, D] to [B, N, d]."""
        if len(self.layers) == 0 and x.dim() == 2:
            return x.unsqueeze(1).expand(-1, self.count, -1)
        out: Tensor = self.layers(x)
        return out


class MLP(Block):
    """One stack of linear layers: [B, D] -> [B, d]."""

    def __init__(self, in_features: int, config: StackConfig) -> None:
        super().__init__()
        self.stack = ParallelMLP(1, in_features, config)
        self.out_features = self.stack.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, D] to [B, d]."""
        out: Tensor = self.stack(x).squeeze(1)
        return out
