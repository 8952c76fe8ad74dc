"""The pairwise term of a factorisation machine, as in DeepFM (Guo et al., IJCAI 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.models.blocks import Block
from dlrm_mtl.models.interactions.width import one_width


class FMConfig(Strict):
    """All features, and beside them the pairwise term of a factorisation machine, as in DeepFM (Guo et al., IJCAI 2017)."""

    name: Literal["fm"] = "fm"
    pooling: Literal["sum", "none"] = "sum"
    """`sum`: one number, as in DeepFM. `none`: one number per dimension, the bi-interaction of He & Chua (SIGIR 2017)."""


@register("interaction", "fm", config=FMConfig)
class FM(Block):
    """sum_{i<j} v_i * v_j = ((sum_i v_i)^2 - sum_i v_i^2) / 2 appended to the features: [B, D] -> [B, D + 1] or [B, D + d].

    The following layers are the deep part of DeepFM; its linear term reaches them through the features. The vectors are the
    pooled features, and the dense ones if they have the same width. (``torchrec.modules.deepfm.FactorizationMachine`` also
    multiplies different dimensions of the vectors, which is not the paper's equation.)
    """

    def __init__(self, config: FMConfig, fields: Sequence[int], dense: int) -> None:
        super().__init__()
        self.width = one_width("fm", fields)
        self.crossed = sum(fields) + (dense if dense == self.width else 0)
        self.sum = config.pooling == "sum"
        self.out_features = sum(fields) + dense + (1 if self.sum else self.width)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, D']."""
        vectors = features[:, : self.crossed].unflatten(1, (-1, self.width))  # [B, F, d]
        crossed = (vectors.sum(1).square() - vectors.square().sum(1)) / 2
        return torch.cat([features, crossed.sum(1, keepdim=True) if self.sum else crossed], dim=1)
