"""What training, evaluation and prediction need of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dlrm_mtl.core.schema import PartConfig
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec
from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.models.feature_lookup import FeatureLookup
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.products import TaskProducts, own_tasks

if TYPE_CHECKING:  # configurations of models load without TorchRec
    from dlrm_mtl.data.keyed_ids import KeyedIds, ModelBatch


class RankingModelConfig(PartConfig):
    """What the configurations of all models have in common."""

    draws_items: ClassVar[bool] = False
    """Whether the model draws items that the row's item is compared with, as ranking losses need."""

    @property
    def title(self) -> str:
        """What tells runs of different models apart: the model's name by default."""
        return self.name


@dataclass(frozen=True)
class ModelInputs:
    """What a model is made for."""

    spec: DatasetSpec
    """The data set."""
    sparse: Sequence[str]
    """Names of the sparse and sequence features that are read."""
    dense: Sequence[FeatureSpec]
    """The columns of a batch's dense tensor."""
    tasks: Sequence[TaskConfig]
    """The tasks."""

    @property
    def own_tasks(self) -> list[TaskConfig]:
        """The tasks that need a logit of their own, O of them; the others are products of these."""
        return [self.tasks[number] for number in own_tasks(self.tasks)]


class PairScores(Protocol):
    """What a model offers that scores a user and an item by a product: then all items can be ranked for every user."""

    user: str
    """Name of the feature that holds the user."""
    item: str
    """Name of the feature that holds the item."""
    items: int
    """Ids of items run from 0 to items - 1."""
    dim: int
    """Columns of the vectors."""

    def vectors(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For ids of users and items [n] their vectors [n, d], and the items' biases [n, 1]."""
        ...


class RankingModel(nn.Module):
    """From a batch to one logit per task, in two steps with the vectors of all features between them.

    Args:
        tables: the embedding tables.
        tasks: the tasks.
    """

    def __init__(self, tables: TableSet, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        self.lookup = FeatureLookup(tables)
        self.products = TaskProducts(tasks)

    def forward(self, batch: ModelBatch) -> Tensor:
        """Return logits [B, T]."""
        with record_function("## embeddings ##"):
            features = self.lookup(self.ids(batch))
        with record_function("## dense ##"):
            return self.logits_of(features, batch.dense)

    def logits_of(self, features: Tensor, dense: Tensor) -> Tensor:
        """The logits [B, T] of all tasks, given what :meth:`own_logits` is."""
        logits: Tensor = self.products(self.own_logits(features, dense))
        return logits

    def ids(self, batch: ModelBatch) -> KeyedIds:
        """What is looked up."""
        return batch.sparse

    def own_logits(self, features: Tensor, dense: Tensor) -> Tensor:
        """The logits [B, O] of the tasks that have their own.

        Args:
            features: [B, W], see :class:`~dlrm_mtl.models.feature_lookup.FeatureLookup`.
            dense: [B, N], the dense features as the reader gives them.
        """
        raise NotImplementedError

    def start_from(self, logits: Sequence[float | None]) -> None:
        """Let each own task's logit start from what it is on average, where that is known; rare tasks learn sooner."""

    def pair_scores(self) -> PairScores | None:
        """What ranks all items for every user in evaluation; None for a model that cannot."""
        return None

    def penalty(self, logits: Tensor) -> Tensor | None:
        """What the model adds to the loss of every row, [B], given logits [B, T]; None for nothing."""
        return None


@torch.no_grad()
def start_biases(biases: Tensor, logits: Sequence[float | None]) -> None:
    """Set the biases [O] or [O, 1] of the last layer to ``logits`` where these are known."""
    for bias, logit in zip(biases, logits, strict=True):
        if logit is not None:
            bias.fill_(logit)
