"""Shared-bottom: one stack of layers that all tasks read (Caruana, 1997)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.models.blocks import MLP, Block, StackConfig


class SharedBottomConfig(StackConfig):
    """One stack of layers whose output every task reads."""

    name: Literal["shared_bottom"] = "shared_bottom"


@register("architecture", "shared_bottom", config=SharedBottomConfig, order=10)
class SharedBottom(Block):
    """h = MLP(x); every task's representation is h."""

    def __init__(self, config: SharedBottomConfig, in_features: int, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.bottom = MLP(in_features, config)
        self.out_features = self.bottom.out_features

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, T, d]; the T slices are one tensor, expanded and not copied."""
        out: Tensor = self.bottom(features)
        return out.unsqueeze(1).expand(-1, self.tasks, -1)
