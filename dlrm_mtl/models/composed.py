"""The model with exchangeable parts: tables, interaction, multitask architecture, one tower and logit per task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.embeddings.tables import table_set
from dlrm_mtl.models.base import ModelInputs, RankingModel, start_biases
from dlrm_mtl.models.blocks import MLP, ParallelLinear, ParallelMLP
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.dense_norm import build_dense_norm
from dlrm_mtl.models.dropout import LaneDropout
from dlrm_mtl.models.interactions import build_interaction
from dlrm_mtl.models.multitask import build_multitask


@register("model", "ranker", config=ModelConfig, order=10)
class MultitaskRanker(RankingModel):
    """Ranking model with one logit per task.

    Args:
        config: the ``model`` part of a configuration.
        inputs: features and tasks of the run.

    Raises:
        UserError: tables, interaction or architecture do not fit the features or the tasks.
    """

    def __init__(self, config: ModelConfig, inputs: ModelInputs) -> None:
        super().__init__(table_set(inputs.spec, list(inputs.sparse), config.embeddings), inputs.tasks)
        tasks = len(inputs.own_tasks)
        self.embedding_dropout = LaneDropout(config.embedding_dropout)
        self.dense_norm = build_dense_norm(config.dense_norm, inputs.dense)
        self.dense = MLP(len(inputs.dense), config.dense) if inputs.dense else None
        dense_width = self.dense.out_features if self.dense else 0
        try:
            place = "model.interaction"
            self.interaction = build_interaction(config.interaction, self.lookup.fields, dense_width)
            place = "model.multitask"
            self.multitask = build_multitask(config.multitask, self.interaction.out_features, tasks)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        self.towers = ParallelMLP(tasks, self.multitask.out_features, config.tower)
        self.logits = ParallelLinear(tasks, self.towers.out_features, 1)

    def start_from(self, logits: Sequence[float | None]) -> None:
        """Set the bias of each own task's logit to the logit's known mean; rare tasks then learn sooner."""
        start_biases(self.logits.bias, logits)

    def own_logits(self, features: Tensor, dense: Tensor) -> Tensor:
        """Logits [B, O] of the tasks with their own logit."""
        features = self.embedding_dropout(features)
        if self.dense is not None:
            features = torch.cat([features, self.dense(self.dense_norm(dense))], dim=1)
        per_task = self.multitask(self.interaction(features))
        logits: Tensor = self.logits(self.towers(per_task)).squeeze(-1)
        return logits

    def penalty(self, logits: Tensor) -> Tensor | None:
        """Term that the architecture adds to the loss of every row, [B], given logits [B, T]; None for no term."""
        return self.multitask.penalty(logits[:, self.products.own])
