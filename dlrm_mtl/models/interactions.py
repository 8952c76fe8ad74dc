"""Interactions: from pooled features and dense features to the input of the multitask architecture.

A new interaction is one class with its configuration here, and one line in each of the two tables at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet

from dlrm_mtl.config.strict import Strict
from dlrm_mtl.models.blocks import Block


class ConcatConfig(Strict):
    """The features side by side, as they are."""

    name: Literal["concat"] = "concat"


class DCNv2Config(Strict):
    """Cross layers of DCN-V2 (Wang et al., WWW 2021): every layer multiplies with the input once more."""

    name: Literal["dcnv2"] = "dcnv2"
    layers: int = Field(default=2, gt=0)
    """Number of cross layers."""
    rank: int | None = Field(default=None, gt=0)
    """Rank of each layer's matrix; default: full."""


class Concat(Block):
    """[B, D] -> [B, D], unchanged."""

    def __init__(self, config: ConcatConfig, in_features: int) -> None:
        super().__init__()
        self.out_features = in_features

    def forward(self, features: Tensor) -> Tensor:
        """Return ``features`` [B, D]."""
        return features


class DCNv2(Block):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, the stacked structure of the paper: [B, D] -> [B, D]."""

    def __init__(self, config: DCNv2Config, in_features: int) -> None:
        super().__init__()
        if config.rank is None:
            self.cross: nn.Module = CrossNet(in_features, config.layers)
        else:
            self.cross = LowRankCrossNet(in_features, config.layers, config.rank)
        self.out_features = in_features

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, D]."""
        crossed: Tensor = self.cross(features)
        return crossed


InteractionConfig = Annotated[ConcatConfig | DCNv2Config, Field(discriminator="name")]

_MODULES: dict[type, Callable[..., Block]] = {
    ConcatConfig: Concat,
    DCNv2Config: DCNv2,
}


def build_interaction(config: InteractionConfig, in_features: int) -> Block:
    """The interaction that ``config`` names."""
    return _MODULES[type(config)](config, in_features)
