"""Cross layers of DCN-V2 (Wang et al., WWW 2021, arXiv 2008.13535)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.models.blocks import Block


class DCNv2Config(Strict):
    """Cross layers of DCN-V2 (Wang et al., WWW 2021): every layer multiplies with the input once more."""

    name: Literal["dcnv2"] = "dcnv2"
    layers: int = Field(default=2, gt=0)
    """Number of cross layers."""
    rank: int | None = Field(default=None, gt=0)
    """Rank of each layer's matrix; default: full."""


def _parameters(count: int, *shape: int) -> nn.ParameterList:
    """Matrices with Glorot's normal initialisation, ``count`` of them."""
    return nn.ParameterList([nn.Parameter(nn.init.xavier_normal_(torch.empty(shape))) for _ in range(count)])


def _crossed(first: Tensor, product: Tensor, bias: Tensor, crossed: Tensor) -> Tensor:
    """``first`` * (``product`` + ``bias``) + ``crossed``, with as few large tensors as backward allows; changes ``product``."""
    product += bias
    result = first * product
    result += crossed
    return result


class CrossNet(nn.Module):
    """Cross layers with full matrices W_l; parameters and result as in TorchRec's module of the same name, without TorchRec."""

    def __init__(self, in_features: int, layers: int) -> None:
        super().__init__()
        self.kernels = _parameters(layers, in_features, in_features)
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(in_features, 1)) for _ in range(layers)])

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, D]."""
        first = crossed = features.unsqueeze(2)  # [B, D, 1]
        for kernel, bias in zip(self.kernels, self.bias, strict=True):
            crossed = _crossed(first, torch.matmul(kernel, crossed), bias, crossed)
        return crossed.squeeze(2)


class LowRankCrossNet(nn.Module):
    """Cross layers with W_l V_l instead of a full matrix; as in TorchRec's module of the same name, without TorchRec."""

    def __init__(self, in_features: int, layers: int, rank: int) -> None:
        super().__init__()
        self.W_kernels = _parameters(layers, in_features, rank)
        self.V_kernels = _parameters(layers, rank, in_features)
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(in_features)) for _ in range(layers)])

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, D]."""
        crossed = features
        for wide, narrow, bias in zip(self.W_kernels, self.V_kernels, self.bias, strict=True):
            crossed = _crossed(features, F.linear(F.linear(crossed, narrow), wide), bias, crossed)
        return crossed


@register("interaction", "dcnv2", config=DCNv2Config)
class DCNv2(Block):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, the stacked structure of the paper: [B, D] -> [B, D]."""

    def __init__(self, config: DCNv2Config, fields: Sequence[int], dense: int) -> None:
        super().__init__()
        in_features = sum(fields) + dense
        if config.rank is None:
            self.cross: nn.Module = CrossNet(in_features, config.layers)
        else:
            self.cross = LowRankCrossNet(in_features, config.layers, config.rank)
        self.out_features = in_features

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, D]."""
        crossed: Tensor = self.cross(features)
        return crossed
