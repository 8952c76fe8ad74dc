"""Building the distributed model and its optimizers from a configuration."""

from __future__ import annotations

import logging
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.batch_random import BatchRandom
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.tables import TableSet, initialise
from dlrm_mtl.embeddings.torchrec.communication import codecs
from dlrm_mtl.embeddings.torchrec.lookups import average_in_lookup
from dlrm_mtl.embeddings.torchrec.plan import make_plan, processes
from dlrm_mtl.embeddings.torchrec.plan_file import read_plan, sharding_plan
from dlrm_mtl.embeddings.torchrec.sharders import two_phase_sharders
from dlrm_mtl.embeddings.torchrec.shards import placements, sharded_collections
from dlrm_mtl.embeddings.torchrec.table_memory import TableMemory
from dlrm_mtl.embeddings.unbounded.ids import UnboundedIds, Vocabulary
from dlrm_mtl.embeddings.unbounded.row_resets import RowResets
from dlrm_mtl.models.base import ModelInputs, RankingModel
from dlrm_mtl.models.dropout import connect_dropout
from dlrm_mtl.models.registry import build_ranking_model
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.tasks.check import starting_logits
from dlrm_mtl.tasks.products import own_tasks
from dlrm_mtl.training.balanced_step import BalancedStep
from dlrm_mtl.training.balancing_state import build_gradient_balancing
from dlrm_mtl.training.compiled import compile_dense_part
from dlrm_mtl.training.full_ranking import FullRanking
from dlrm_mtl.training.sharded_model import ShardedModel
from dlrm_mtl.training.step import TrainingStep

AUTOCAST = {"bfloat16": torch.bfloat16}
"""Number formats of ``training.autocast``."""


def build_model(
    config: RunConfig,
    spec: DatasetSpec,
    process: Process,
    *,
    planned: bool = False,
    plan: ShardingPlan | None = None,
    initial: bool = True,
) -> ShardedModel:
    """Build, shard and initialise the model; the same weights on any number of processes and under any plan.

    Args:
        config: configuration of the run.
        spec: description of its data set.
        process: this process.
        planned: True to place the tables by the file `sharding.plan`, if there is one.
        plan: placement of the tables. Default: by that file, or the one that the processes make together.
        initial: False to leave the tables, and how their memory is allocated, to the caller.

    Raises:
        UserError: the configuration does not fit the data set or the processes.
    """
    quieten()
    ranker, spec = build_ranker(config, spec)
    tables = ranker.lookup.table_set
    weighting = config.task_weighting.build(len(config.tasks))
    ranker.add_module("task_weighting", weighting)
    if plan is None and planned and config.sharding.plan is not None:
        layout = processes(config.sharding, process.world_size)
        written = read_plan(Path(config.sharding.plan), tables.configs, layout)
        plan = sharding_plan(ranker, written, process.device.type)
    elif plan is None:
        plan = make_plan(ranker, tables.configs, config.sharding, process.device, config.data.training_rows)
    with TableMemory() if initial else nullcontext():
        module = DistributedModelParallel(
            ranker,
            device=process.device,
            plan=plan,
            sharders=two_phase_sharders(codecs(config.sharding.communication, config.data.batch_size)),
        )
    if config.training.autocast is not None:
        ranker.autocast = AUTOCAST[config.training.autocast]
    if initial:
        initialise(module, tables.stds, config.seed)
    if tables.pooled and process.device.type == "cpu":
        ranker.lookup.averaged = average_in_lookup(ranker.lookup.tables, tables.means)
    lanes = config.data.lanes // process.world_size
    random = BatchRandom(config.seed, range(process.rank * lanes, (process.rank + 1) * lanes))
    connect_dropout(module, random)
    if config.training.compile:
        compile_dense_part(ranker, process.device)
    ids = UnboundedIds(_vocabularies(config, spec, tables), process.device)
    if ids.vocabularies:
        ranker.lookup.unbounded = ids
    model = ShardedModel(module, plan, tables, random, ids, weighting)
    scores = ranker.pair_scores()
    if scores is not None:
        rows = config.data.evaluation_batch_size // process.world_size
        model.full_ranking = FullRanking(scores, config.data.path, rows, process.device)
    names = sorted(placements(sharded_collections(module)))
    tasks = [task.name for task in config.tasks]
    model.balancing = build_gradient_balancing(config.balancing, tasks, model.dense_parameters(), names)
    if model.balancing is not None:
        ranker.add_module("balancing", model.balancing)
    return model


def build_ranker(config: RunConfig, spec: DatasetSpec) -> tuple[RankingModel, DatasetSpec]:
    """Build the model before sharding, with tables that take no memory.

    Returns:
        The model, and the data set's description with the rows of all tables.

    Raises:
        UserError: the configuration does not fit the data set.
    """
    selection = select(spec, config.data, [])
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision(config.training.matmul_precision)
    spec = spec.with_rows({name: unbounded.rows for name, unbounded in config.data.unbounded.items()})
    ranker = build_ranking_model(config.model, ModelInputs(spec, selection.keys, selection.dense, config.tasks))
    drawn = config.data.negatives.each if config.data.negatives else 0
    logits = starting_logits(config.tasks, spec, drawn)
    ranker.start_from([logits[number] for number in own_tasks(config.tasks)])
    return ranker, spec


def build_optimizers(config: RunConfig, model: ShardedModel, total_steps: int) -> Optimizers:
    """Build the optimizers of all parameters of ``model``."""
    optimizers = Optimizers(
        config.optimizer,
        model.dense_parameters(),
        model.module,
        total_steps,
        model.table_set.rates,
    )
    model.ids.connect(RowResets(optimizers.sparse, model.table_set.stds, config.seed))
    return optimizers


def build_step(config: RunConfig, process: Process, model: ShardedModel, optimizers: Optimizers) -> TrainingStep:
    """Build the training step of the configuration: with gradient balancing, or plain."""
    kind = TrainingStep if model.balancing is None else BalancedStep
    return kind(config, process, model, optimizers)


def _vocabularies(config: RunConfig, spec: DatasetSpec, tables: TableSet) -> dict[str, Vocabulary]:
    """Unbounded vocabularies of a run, with their features and tables."""
    result = {name: Vocabulary(each.rows, each.eviction) for name, each in config.data.unbounded.items()}
    known = {feature.name for feature in spec.features}
    for table in tables.configs:
        for feature in known.intersection(table.feature_names):  # a model may draw features of its own
            vocabulary = result.get(spec.vocabulary_owner(feature))
            if vocabulary is not None:
                vocabulary.features.add(feature)
                vocabulary.tables.add(table.name)
    return result


def quieten() -> None:
    """Suppress remarks that users cannot act on."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    logging.getLogger().addFilter(_not_about_specs)  # the same function is added only once
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for module in (r"torchrec\.", r"torch\.distributed\."):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    for message in (
        "Please use DTensor instead",
        "fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel",
        "Grad strides do not match bucket view strides",
    ):
        warnings.filterwarnings("ignore", message=message)


def _not_about_specs(record: logging.LogRecord) -> bool:
    return "Sharding spec not found" not in record.getMessage()
