"""Interface of models for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dlrm_mtl.core.phases import mark_features, phase
from dlrm_mtl.core.schema import PartConfig
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec
from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.models.feature_lookup import FeatureLookup
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.products import TaskProducts, own_tasks

if TYPE_CHECKING:  # configurations of models load without TorchRec
    from dlrm_mtl.data.keyed_ids import KeyedIds, ModelBatch


class RankingModelConfig(PartConfig):
    """Base of the configurations of all models."""

    draws_items: ClassVar[bool] = False
    """True if the model draws items to compare the row's item with, as ranking losses need."""

    @property
    def title(self) -> str:
        """Title that distinguishes runs of different models: the model's name by default."""
        return self.name


@dataclass(frozen=True)
class ModelInputs:
    """The features and tasks that a model is built for."""

    spec: DatasetSpec
    """Description of the data set."""
    sparse: Sequence[str]
    """Names of the sparse and sequence features, in order."""
    dense: Sequence[FeatureSpec]
    """Columns of a batch's dense tensor."""
    tasks: Sequence[TaskConfig]
    """Tasks of the run."""

    @property
    def own_tasks(self) -> list[TaskConfig]:
        """Tasks that need their own logit, O of them; the others are products of these."""
        return [self.tasks[number] for number in own_tasks(self.tasks)]


class PairScores(Protocol):
    """Interface of a model that scores a user and an item by a product: all items can then be ranked for every user."""

    user: str
    """Name of the feature that holds the user."""
    item: str
    """Name of the feature that holds the item."""
    items: int
    """Number of items; their ids run from 0 to items - 1."""
    dim: int
    """Number of columns of the vectors."""

    def vectors(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors [n, d] of users and of items with ids [n], and the items' biases [n, 1]."""
        ...


class RankingModel(nn.Module):
    """A model from a batch to one logit per task, in two steps: the vectors of all features, then the logits.

    Args:
        tables: the embedding tables.
        tasks: the tasks.
    """

    def __init__(self, tables: TableSet, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        self.lookup = FeatureLookup(tables)
        self.products = TaskProducts(tasks)
        self.compiled: Callable[[Tensor, Tensor], Tensor] | None = None
        """Compiled form of :meth:`logits_of`, for training; see :mod:`dlrm_mtl.training.compiled`."""
        self.autocast: torch.dtype | None = None
        """Number format of the dense part's matrix products in training; None for float32."""

    def forward(self, batch: ModelBatch) -> Tensor:
        """Return logits [B, T]."""
        with phase("embeddings"):
            features = self.lookup(self.ids(batch))
        mark_features(features)
        half = self.training and self.autocast is not None
        with phase("dense"), torch.autocast(features.device.type, self.autocast) if half else nullcontext():
            if self.compiled is not None and torch.is_grad_enabled():
                return self.compiled(features, batch.dense)
            return self.logits_of(features, batch.dense)

    def logits_of(self, features: Tensor, dense: Tensor) -> Tensor:
        """Return logits [B, T] of all tasks, from the result of :meth:`own_logits`."""
        logits: Tensor = self.products(self.own_logits(features, dense).float())
        return logits

    def ids(self, batch: ModelBatch) -> KeyedIds:
        """Ids to look up."""
        return batch.sparse

    def own_logits(self, features: Tensor, dense: Tensor) -> Tensor:
        """Logits [B, O] of the tasks with their own logit.

        Args:
            features: [B, W], see :class:`~dlrm_mtl.models.feature_lookup.FeatureLookup`.
            dense: [B, N], the dense features from the reader.
        """
        raise NotImplementedError

    def start_from(self, logits: Sequence[float | None]) -> None:
        """Set the bias of each own task's logit to the logit's known mean; rare tasks then learn sooner."""

    def pair_scores(self) -> PairScores | None:
        """Scores that rank all items for every user in evaluation; None for a model that cannot."""
        return None

    def penalty(self, logits: Tensor) -> Tensor | None:
        """Term that the model adds to the loss of every row, [B], given logits [B, T]; None for no term."""
        return None


@torch.no_grad()
def start_biases(biases: Tensor, logits: Sequence[float | None]) -> None:
    """Set the biases [O] or [O, 1] of the last layer to the known ``logits``."""
    for bias, logit in zip(biases, logits, strict=True):
        if logit is not None:
            bias.fill_(logit)
