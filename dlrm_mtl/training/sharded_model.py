"""The model of a run, spread over its processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from dlrm_mtl.core.batch_random import BatchRandom
from dlrm_mtl.embeddings.tables import Table, TableSet, is_table, table_weights
from dlrm_mtl.embeddings.unbounded.ids import UnboundedIds
from dlrm_mtl.models.base import RankingModel
from dlrm_mtl.tasks.weighting import TaskWeighting
from dlrm_mtl.training.balancing_state import GradientBalancing
from dlrm_mtl.training.full_ranking import FullRanking


@dataclass
class ShardedModel:
    """A model spread over the processes of a run."""

    module: DistributedModelParallel
    """Call it with a batch: logits [B, T]."""
    plan: ShardingPlan
    """Where each table lives."""
    table_set: TableSet
    """The tables, and what features become."""
    random: BatchRandom
    """The clock of all draws (dropout, negatives, samples of tasks): its ``step`` is set before every micro-batch."""
    ids: UnboundedIds
    """Turns unbounded ids into rows; gives rows to new ids during training steps."""
    weighting: TaskWeighting
    """How the tasks' losses become one. A part of the model: DDP reduces its gradients and checkpoints hold its state."""
    full_ranking: FullRanking | None = None
    """Ranks all items in evaluation, with models that score users and items by a product."""
    balancing: GradientBalancing | None = None
    """What gradient balancing keeps, if there is any. A part of the model, too."""

    @property
    def tables(self) -> Sequence[Table]:
        """The tables."""
        return self.table_set.configs

    @property
    def ranker(self) -> RankingModel:
        """The model inside the wrapper."""
        ranker = self.module.module
        assert isinstance(ranker, RankingModel)
        return ranker

    def table_weights(self) -> dict[str, Any]:
        """Weights [rows, dim] of every table by name: a ShardedTensor, or a Tensor if every process holds it all."""
        return table_weights(self.module)

    def dense_weights(self) -> dict[str, Tensor]:
        """All other parameters and buffers by name."""
        return {key: value for key, value in self.module.state_dict().items() if not is_table(key)}

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters outside the tables by name."""
        return {name: parameter for name, parameter in self.module.named_parameters() if not is_table(name)}

    def penalty(self, logits: Tensor) -> Tensor | None:
        """What the architecture adds to the loss of every row, [B], given logits [B, T]; None for nothing."""
        return self.ranker.penalty(logits)

    def parameter_count(self) -> tuple[int, int]:
        """Parameters in the tables, without columns that only fill them up, and outside them."""
        return self.table_set.parameters, sum(parameter.numel() for parameter in self.dense_parameters().values())
