"""Cross layers of DCN-V2 (Wang et al., WWW 2021, arXiv 2008.13535)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

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


@register("interaction", "dcnv2", config=DCNv2Config)
class DCNv2(Block):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, the stacked structure of the paper: [B, D] -> [B, D]."""

    def __init__(self, config: DCNv2Config, fields: Sequence[int], dense: int) -> None:
        super().__init__()
        from torchrec.modules.crossnet import CrossNet, LowRankCrossNet  # here, so that configurations load without it

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
