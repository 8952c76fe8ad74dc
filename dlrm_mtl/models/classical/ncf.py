"""The two-table model that the AliExpress Clippy project called neural collaborative filtering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.embeddings.config import EmbeddingsConfig
from dlrm_mtl.embeddings.tables import table_set
from dlrm_mtl.models.base import ModelInputs, RankingModel, RankingModelConfig, start_biases
from dlrm_mtl.models.blocks import MLP, ParallelLinear, ParallelMLP, StackConfig
from dlrm_mtl.models.classical.user_item import two_halves
from dlrm_mtl.models.dense_norm import DenseNorm, build_dense_norm


class NCFConfig(RankingModelConfig):
    """Two tables per vocabulary: one half multiplies features with the dense ones, the other passes layers."""

    name: Literal["ncf"] = "ncf"
    """Name of this model."""
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    """Embedding tables of either half; all of one width, without flattened features."""
    dense_norm: DenseNorm = "standardise"
    """Scaling of dense features: `none`, `standardise` (mean and deviation in dataset.yaml), or standardised and then
    `batch` or `layer` normalisation. With `batch` the model depends on the number of processes."""
    bottom: StackConfig = StackConfig(layers=[512, 256])
    """Layers of the second half."""
    tower: StackConfig = StackConfig(layers=[128, 64])
    """Layers of each task's tower, below its logit."""


@register("model", "ncf", config=NCFConfig, order=30)
class NCF(RankingModel):
    """G = e1_f * (A1 x) for every feature f, concatenated; M = MLP([e2_1 .. e2_F, A2 x]); towers read [G, M].

    e1_f and e2_f are the vectors of feature f in the two sets of tables, x the dense features, A1 and A2 linear layers (with
    bias) to the tables' width d. This is not NeuMF (He et al., WWW 2017), for which see `neumf`: it multiplies every feature
    with the dense ones, not users with items, and does not exist without dense features.

    Parameters with V rows in all vocabularies, N dense features, F features, O tasks, bottom h and tower k:
    2 (V d + (N + 1) d) + P((F + 1) d; h) + O (P(h[-1] + F d; k) + k[-1] + 1), where P counts a stack with biases.
    """

    def __init__(self, config: NCFConfig, inputs: ModelInputs) -> None:
        if not inputs.dense:
            raise UserError(
                "model.name: ncf multiplies features with dense ones and the run reads none; add data.dense."
            )
        if config.embeddings.features:
            name = next(iter(config.embeddings.features))
            raise UserError(f"model.embeddings.features.{name}: ncf has one way to pool features; use pooling instead.")
        single = table_set(inputs.spec, list(inputs.sparse), config.embeddings)
        super().__init__(two_halves(single), inputs.tasks)
        dims = {table.embedding_dim for table in single.configs}
        if len(dims) != 1:
            raise UserError(
                f"model.embeddings.tables: ncf needs tables of one width and finds {sorted(dims)}; remove dim."
            )
        (self.dim,) = dims
        self.product_width = sum(self.lookup.widths) // 2
        tasks = len(inputs.own_tasks)
        self.dense_norm = build_dense_norm(config.dense_norm, inputs.dense)
        self.factor = nn.Linear(len(inputs.dense), self.dim)
        self.field = nn.Linear(len(inputs.dense), self.dim)
        self.bottom = MLP(self.product_width + self.dim, config.bottom)
        self.towers = ParallelMLP(tasks, self.product_width + self.bottom.out_features, config.tower)
        self.logits = ParallelLinear(tasks, self.towers.out_features, 1)

    def start_from(self, logits: Sequence[float | None]) -> None:
        """Set the bias of each own task's logit to the logit's known mean."""
        start_biases(self.logits.bias, logits)

    def own_logits(self, features: Tensor, dense: Tensor) -> Tensor:
        """Logits [B, O] of the tasks with their own logit."""
        dense = self.dense_norm(dense)
        first, second = features[:, : self.product_width], features[:, self.product_width :]
        product = (first.unflatten(1, (-1, self.dim)) * self.factor(dense).unsqueeze(1)).flatten(1)
        deep = self.bottom(torch.cat([second, self.field(dense)], dim=1))
        logits: Tensor = self.logits(self.towers(torch.cat([product, deep], dim=1))).squeeze(-1)
        return logits
