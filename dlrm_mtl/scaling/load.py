"""The load of a run's configuration: its tables, its dense part, its batches."""

from __future__ import annotations

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.tables import is_table
from dlrm_mtl.models.base import ModelInputs, RankingModel
from dlrm_mtl.run.costs import count_model
from dlrm_mtl.run.plan import dense_bytes
from dlrm_mtl.scaling.statistics import Sample, table_loads
from dlrm_mtl.scaling.tables import DenseLoad, Load, StateSize

PASSES = 3
"""Matrix products of a forward and a backward pass, in forward passes: backward multiplies for inputs and for weights."""


def load_of(config: RunConfig, spec: DatasetSpec, ranker: RankingModel, sample: Sample | None) -> Load:
    """Load of a training step.

    Args:
        config: configuration of the run.
        spec: description of its data set, with the rows of all tables, as of
            :func:`~dlrm_mtl.training.build.build_ranker`.
        ranker: the model before sharding.
        sample: ids of the data set, see :func:`~dlrm_mtl.scaling.statistics.sample_ids`.
    """
    selection = select(spec, config.data, [])
    inputs = ModelInputs(spec, selection.keys, selection.dense, config.tasks)
    multiply_adds = count_model(config.model, inputs)[3]
    weighting = config.task_weighting.build(len(config.tasks))
    parameters = [parameter for name, parameter in ranker.named_parameters() if not is_table(name)]
    parameters += list(weighting.parameters())
    update = config.optimizer.sparse.native()
    dense = DenseLoad(
        parameter_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        flops=2 * PASSES * multiply_adds,
        held_bytes=dense_bytes(config, ranker),
        tasks=len(config.tasks),
    )
    return Load(
        table_loads(config, spec, ranker.lookup.table_set, sample),
        dense,
        StateSize.of(config.optimizer.sparse.states),
        config.data.training_rows,
        config.training.micro_batches,
        2 if update is not None and update.per_row else 1,
    )
