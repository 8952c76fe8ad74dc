"""From a configuration to the distributed model and its optimizers."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.data.selection import select
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.collecting import two_phase_sharders
from dlrm_mtl.embeddings.sharding import make_plan
from dlrm_mtl.embeddings.tables import build_tables, initialise, is_table, table_configs, table_weights
from dlrm_mtl.models.dropout import DropoutStream, connect_dropout
from dlrm_mtl.models.ranker import MultitaskRanker
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.tasks.check import starting_logits
from dlrm_mtl.tasks.weighting import TaskWeighting, build_weighting
from dlrm_mtl.training.distributed import Process


@dataclass
class ShardedModel:
    """A model spread over the processes of a run."""

    module: DistributedModelParallel
    """Call it with a batch: logits [B, T]."""
    plan: ShardingPlan
    """Where each table lives."""
    tables: list[EmbeddingBagConfig]
    """The tables."""
    dropout: DropoutStream
    """Set its ``step`` before every training step."""
    weighting: TaskWeighting
    """How the tasks' losses become one. A part of the model: DDP reduces its gradients and checkpoints hold its state."""

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
        ranker = self.module.module
        assert isinstance(ranker, MultitaskRanker)
        return ranker.multitask.penalty(logits)

    def parameter_count(self) -> tuple[int, int]:
        """Parameters in the tables, and outside them."""
        sparse = sum(table.num_embeddings * table.embedding_dim for table in self.tables)
        return sparse, sum(parameter.numel() for parameter in self.dense_parameters().values())


def build_model(config: RunConfig, spec: DatasetSpec, process: Process) -> ShardedModel:
    """Build, shard and initialise the model; the same weights on any number of processes and under any plan.

    Raises:
        UserError: the configuration does not fit the data set or the processes.
    """
    _quieten()
    selection = select(spec, config.data, [])
    tables = table_configs(spec, selection.keys, config.model.embeddings)
    torch.manual_seed(config.seed)
    collection = build_tables(tables)
    ranker = MultitaskRanker(collection, len(selection.dense), len(config.tasks), config.model)
    ranker.start_from(starting_logits(config.tasks, spec))
    weighting = build_weighting(config.task_weighting, len(config.tasks))
    ranker.add_module("task_weighting", weighting)
    plan = make_plan(ranker, tables, config.sharding, process.device, config.data.batch_size)
    module = DistributedModelParallel(
        ranker,
        device=process.device,
        plan=plan,
        sharders=two_phase_sharders(),
    )
    initialise(module, config.model.embeddings, config.seed)
    lanes = config.data.lanes // process.world_size
    stream = DropoutStream(config.seed, range(process.rank * lanes, (process.rank + 1) * lanes))
    connect_dropout(module, stream)
    return ShardedModel(module, plan, tables, stream, weighting)


def build_optimizers(config: RunConfig, model: ShardedModel, total_steps: int) -> Optimizers:
    """The optimizers of all parameters of ``model``."""
    return Optimizers(
        config.optimizer,
        model.dense_parameters(),
        model.module,
        total_steps,
    )


def _quieten() -> None:
    """Keep remarks that no user can act on out of a run's output."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    logging.getLogger().addFilter(lambda record: "Sharding spec not found" not in record.getMessage())
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for module in (r"torchrec\.", r"torch\.distributed\."):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    for message in (
        "Please use DTensor instead",
        "fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel",
        "Grad strides do not match bucket view strides",
    ):
        warnings.filterwarnings("ignore", message=message)
