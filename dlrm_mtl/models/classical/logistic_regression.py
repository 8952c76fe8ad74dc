"""Logistic regression: one weight per task for every id and every dense feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dlrm_mtl.core.registry import register
from dlrm_mtl.embeddings.tables import EmbeddingTable, TableSet, padded
from dlrm_mtl.models.base import ModelInputs, RankingModel, RankingModelConfig, start_biases
from dlrm_mtl.models.dense_norm import DenseNorm, build_dense_norm


class LogisticRegressionConfig(RankingModelConfig):
    """One weight per task for every id and every dense feature: the yardstick for everything deeper."""

    name: Literal["logistic_regression"] = "logistic_regression"
    """Name of this model."""
    init_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the ids' initial weights (normal, mean 0); the loss is convex, so 0 works."""
    dense_norm: DenseNorm = "standardise"
    """Scaling of dense features: `none`, `standardise` (mean and deviation in dataset.yaml), or standardised and then
    `batch` or `layer` normalisation. With `batch` the model depends on the number of processes."""


@register("model", "logistic_regression", config=LogisticRegressionConfig, order=20)
class LogisticRegression(RankingModel):
    """logit_t = sum_f sum_{i in ids of f} w_{f,i,t} + <v_t, x> + b_t.

    A one-hot matrix times weights is a sum of the weights' rows, so each feature has a table of T columns whose bags are
    summed. Ids of two features have different weights, even if the features share a vocabulary. FBGEMM stores a multiple of
    4 columns: those beyond T never change, and their gradient, 0, counts in the row-wise mean square. With real labels this
    is linear regression.

    Parameters with O tasks of their own, N dense features and V ids in all features: O (V + N + 1).
    """

    def __init__(self, config: LogisticRegressionConfig, inputs: ModelInputs) -> None:
        tasks = len(inputs.own_tasks)
        tables = [
            EmbeddingTable(name, inputs.spec.vocabulary_size(name), padded(tasks), [name]) for name in inputs.sparse
        ]
        stds, padding = (
            dict.fromkeys(inputs.sparse, config.init_std),
            dict.fromkeys(inputs.sparse, padded(tasks) - tasks),
        )
        super().__init__(TableSet(tables, stds, padding=padding), inputs.tasks)
        self.tasks = tasks
        self.dense_norm = build_dense_norm(config.dense_norm, inputs.dense)
        self.weight = nn.Parameter(torch.zeros(tasks, len(inputs.dense))) if inputs.dense else None
        self.bias = nn.Parameter(torch.zeros(tasks))

    def start_from(self, logits: Sequence[float | None]) -> None:
        """Set the bias of each own task's logit to the logit's known mean."""
        start_biases(self.bias, logits)

    def own_logits(self, features: Tensor, dense: Tensor) -> Tensor:
        """Logits [B, O] of the tasks with their own logit."""
        width = padded(self.tasks)
        logits = features.unflatten(1, (-1, width)).sum(dim=1)[:, : self.tasks] + self.bias
        if self.weight is not None:
            logits = logits + self.dense_norm(dense) @ self.weight.T
        return logits
