"""The model of a run, distributed over its processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from dlrm_mtl.core.batch_random import BatchRandom
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.keyed_ids import KeyedIds
from dlrm_mtl.embeddings.tables import EmbeddingTable, TableSet, is_table, table_weights
from dlrm_mtl.embeddings.unbounded.ids import UnboundedIds
from dlrm_mtl.models.base import RankingModel
from dlrm_mtl.tasks.weighting import TaskWeighting
from dlrm_mtl.training.balancing_state import GradientBalancing
from dlrm_mtl.training.full_ranking import FullRanking


@dataclass
class ShardedModel:
    """A model distributed over the processes of a run."""

    module: DistributedModelParallel
    """Model to call with a batch; returns logits [B, T]."""
    plan: ShardingPlan
    """Placement of each table."""
    table_set: TableSet
    """Tables, and the pooling of their features."""
    random: BatchRandom
    """Source of all random draws (dropout, negatives, sampled tasks): its ``step`` is set before every micro-batch."""
    ids: UnboundedIds
    """Map of unbounded ids to rows; gives rows to new ids in training steps."""
    weighting: TaskWeighting
    """Combination of the tasks' losses. A part of the model: DDP reduces its gradients and checkpoints hold its state."""
    full_ranking: FullRanking | None = None
    """Ranking of all items in evaluation, for models that score users and items by a product."""
    balancing: GradientBalancing | None = None
    """State of gradient balancing, if there is any. Also a part of the model."""

    @property
    def device(self) -> torch.device:
        """Device of batches."""
        found: torch.device = self.module.device
        return found

    @property
    def tables(self) -> Sequence[EmbeddingTable]:
        """The tables."""
        return self.table_set.configs

    @property
    def ranker(self) -> RankingModel:
        """The model inside the wrapper."""
        ranker = self.module.module
        assert isinstance(ranker, RankingModel)
        return ranker

    def lookup_inputs(self, batch: Batch) -> list[tuple[nn.Module, KeyedIds]]:
        """The collections of tables, each with what the model looks up in it for ``batch`` in training."""
        lookup, ids = self.ranker.lookup, self.ranker.ids(batch)
        found: list[tuple[nn.Module, KeyedIds]] = []
        if lookup.tables is not None:
            found.append((lookup.tables, ids))
        if lookup.unpooled_tables is not None:
            found.append((lookup.unpooled_tables, lookup.unpooled_ids(ids)))
        return found

    def table_weights(self) -> dict[str, Any]:
        """Weights [rows, dim] of every table by name: a ShardedTensor, or a Tensor for a replicated table."""
        return table_weights(self.module)

    def dense_weights(self) -> dict[str, Tensor]:
        """All other parameters and buffers by name."""
        return {key: value for key, value in self.module.state_dict().items() if not is_table(key)}

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters outside the tables by name."""
        return {name: parameter for name, parameter in self.module.named_parameters() if not is_table(name)}

    def penalty(self, logits: Tensor) -> Tensor | None:
        """Term that the architecture adds to the loss of every row, [B], given logits [B, T]; None for no term."""
        return self.ranker.penalty(logits)

    def parameter_count(self) -> tuple[int, int]:
        """Number of parameters in the tables, without padding columns, and outside them."""
        return self.table_set.parameters, sum(parameter.numel() for parameter in self.dense_parameters().values())
