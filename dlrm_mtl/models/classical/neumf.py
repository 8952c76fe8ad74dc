"""NeuMF (He et al., WWW 2017), for several tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.models.base import ModelInputs, RankingModel, RankingModelConfig, start_biases
from dlrm_mtl.models.blocks import MLP, ParallelLinear, ParallelMLP, StackConfig
from dlrm_mtl.models.classical.user_item import check_pair, vectors


class NeuMFConfig(RankingModelConfig):
    """Users and items only: their product, and layers over both, with tables of their own."""

    name: Literal["neumf"] = "neumf"
    """Name of this model."""
    user: str
    """Name of the feature that holds the user."""
    item: str
    """Name of the feature that holds the item. The model uses no other feature."""
    dim: int = Field(default=64, gt=0, multiple_of=4)
    """Number of columns of the product's tables; a multiple of 4."""
    deep_dim: int | None = Field(default=None, gt=0, multiple_of=4)
    """Number of columns of the tables below the layers; a multiple of 4. Default: `dim`."""
    init_std: float = Field(default=0.01, ge=0)
    """Standard deviation of the initial weights of the tables (normal, mean 0)."""
    deep: StackConfig = StackConfig(layers=[32, 16, 8])
    """Layers over the user's and the item's vectors."""
    tower: StackConfig = StackConfig(layers=[64, 32])
    """Layers of each task's tower, below its logit; empty in the original model."""


@register("model", "neumf", config=NeuMFConfig, order=40)
class NeuMF(RankingModel):
    """h = [p_u * q_i, MLP([p'_u, q'_i])]; towers, one per task, read h.

    Parameters with U users, I items, O tasks, widths d and d', layers h and tower k:
    (U + I)(d + d') + P(2 d'; h) + O (P(d + h[-1]; k) + k[-1] + 1), where P counts a stack with biases.
    """

    def __init__(self, config: NeuMFConfig, inputs: ModelInputs) -> None:
        check_pair(config.user, config.item, list(inputs.sparse))
        dim, deep_dim = config.dim, config.deep_dim or config.dim
        tables = [
            vectors(f"{half}_{name}", inputs.spec, [name], width)
            for half, width in (("product", dim), ("deep", deep_dim))
            for name in (config.user, config.item)
        ]
        super().__init__(TableSet(tables, {table.name: config.init_std for table in tables}), inputs.tasks)
        tasks = len(inputs.own_tasks)
        self.deep = MLP(2 * deep_dim, config.deep)
        self.towers = ParallelMLP(tasks, dim + self.deep.out_features, config.tower)
        self.logits = ParallelLinear(tasks, self.towers.out_features, 1)

    def start_from(self, logits: Sequence[float | None]) -> None:
        """Set the bias of each own task's logit to the logit's known mean."""
        start_biases(self.logits.bias, logits)

    def own_logits(self, features: Tensor, dense: Tensor) -> Tensor:
        """Logits [B, O] of the tasks with their own logit; dense features are ignored."""
        user, item, deep_user, deep_item = features.split(self.lookup.widths, dim=1)
        deep = self.deep(torch.cat([deep_user, deep_item], dim=1))
        logits: Tensor = self.logits(self.towers(torch.cat([user * item, deep], dim=1))).squeeze(-1)
        return logits
