"""The model: tables, interaction, multitask architecture, one tower and logit per task."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torchrec import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.data.batch import Batch
from dlrm_mtl.embeddings.tables import mean_features
from dlrm_mtl.errors import UserError
from dlrm_mtl.models.blocks import MLP, ParallelLinear, ParallelMLP
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.dropout import LaneDropout
from dlrm_mtl.models.interactions import build_interaction
from dlrm_mtl.models.multitask import build_multitask


class MultitaskRanker(nn.Module):
    """Ranks with one logit per task.

    Args:
        tables: the embedding tables; replaced by their sharded form when the model is wrapped.
        dense_features: number of dense features; may be 0.
        tasks: number of tasks T.
        config: the ``model`` part of a configuration.

    Raises:
        UserError: interaction or architecture do not fit the features or the tasks.
    """

    def __init__(self, tables: EmbeddingBagCollection, dense_features: int, tasks: int, config: ModelConfig) -> None:
        super().__init__()
        self.tables = tables
        # The columns of a KeyedTensor's values() depend on the sharding plan: features are gathered by name, in this order.
        self.feature_names = [name for table in tables.embedding_bag_configs() for name in table.feature_names]
        means = mean_features(tables.embedding_bag_configs(), config.embeddings)
        self.takes_mean = [name in means for name in self.feature_names]
        self.embedding_dropout = LaneDropout(config.embedding_dropout)
        self.dense = MLP(dense_features, config.dense) if dense_features else None
        fields = [table.embedding_dim for table in tables.embedding_bag_configs() for _ in table.feature_names]
        dense_width = self.dense.out_features if self.dense else 0
        try:
            place = "model.interaction"
            self.interaction = build_interaction(config.interaction, fields, dense_width)
            place = "model.multitask"
            self.multitask = build_multitask(config.multitask, self.interaction.out_features, tasks)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        self.towers = ParallelMLP(tasks, self.multitask.out_features, config.tower)
        self.logits = ParallelLinear(tasks, self.towers.out_features, 1)

    @torch.no_grad()
    def start_from(self, logits: list[float | None]) -> None:
        """Let each task's logit start from what it is on average, where that is known; rare tasks learn sooner."""
        for bias, logit in zip(self.logits.bias, logits, strict=True):
            if logit is not None:
                bias.fill_(logit)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits [B, T]."""
        with record_function("## embeddings ##"):
            features = self.embedding_dropout(self.pooled(batch.sparse))
        with record_function("## dense ##"):
            if self.dense is not None:
                features = torch.cat([features, self.dense(batch.dense)], dim=1)
            per_task = self.multitask(self.interaction(features))
            logits: Tensor = self.logits(self.towers(per_task)).squeeze(-1)
        return logits

    def pooled(self, sparse: KeyedJaggedTensor) -> Tensor:
        """Look up all features: [B, sum of dims], in the order of ``feature_names``; an empty bag gives zeros."""
        sums = self.tables(sparse).to_dict()
        columns = [sums[name] for name in self.feature_names]
        if any(self.takes_mean):
            lengths = sparse.lengths().view(len(sparse.keys()), -1)
            row_of = {name: row for row, name in enumerate(sparse.keys())}
            columns = [
                column / lengths[row_of[name]].clamp(min=1).unsqueeze(1) if mean else column
                for name, column, mean in zip(self.feature_names, columns, self.takes_mean, strict=True)
            ]
        return torch.cat(columns, dim=1)
