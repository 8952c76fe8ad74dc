"""No interaction: the features as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.models.blocks import Block


class ConcatConfig(Strict):
    """The features side by side, as they are."""

    name: Literal["concat"] = "concat"


@register("interaction", "concat", config=ConcatConfig)
class Concat(Block):
    """[B, D] -> [B, D], unchanged."""

    def __init__(self, config: ConcatConfig, fields: Sequence[int], dense: int) -> None:
        super().__init__()
        self.out_features = sum(fields) + dense

    def forward(self, features: Tensor) -> Tensor:
        """Return ``features`` [B, D]."""
        return features
