"""What batches look up, from a sample of a run's data set: ids per row, popular rows, distinct rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.batching import assemble
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.dataset import DataFile, Dataset
from dlrm_mtl.data.decode import BlockBuilder, Sources
from dlrm_mtl.data.file_checks import check_files
from dlrm_mtl.data.join_rows import BlockRows
from dlrm_mtl.data.spec import DatasetSpec, SparseStatistics
from dlrm_mtl.embeddings.tables import EmbeddingTable, TableSet
from dlrm_mtl.models.feature_lookup import most_recent
from dlrm_mtl.scaling.tables import Popularity, TableLoad

SAMPLED_ROWS = 65_536
"""Rows of the training split that are read at most."""
SAMPLED_GROUPS = 16
"""Row groups that they come from, spread evenly over the split."""
TRAINING_SPLIT = "train"
DEFAULT_IDS = 1.0
"""Ids per row of a sparse feature without data; a sequence is assumed to have DEFAULT_SEQUENCE."""
DEFAULT_SEQUENCE = 20.0
"""Ids per row of a sequence without data."""

Sample = dict[str, tuple[NDArray[np.int64], int]]
"""Ids of each feature, and the number of rows that they are from."""


def table_loads(config: RunConfig, spec: DatasetSpec, tables: TableSet, sample: Sample | None) -> list[TableLoad]:
    """Load of every table.

    Without a sample, every row of a table is assumed equally popular, and ids per row are those of the data set's
    statistics, or 1 for a sparse feature and 20 for a sequence. Features that a model draws itself count as sparse ones.

    Args:
        config: configuration of the run.
        spec: description of the data set, with the rows of all tables.
        tables: the tables.
        sample: see :func:`sample_ids`.
    """
    return [_load(config, spec, tables, table, sample) for table in tables.configs]


def _load(
    config: RunConfig, spec: DatasetSpec, tables: TableSet, table: EmbeddingTable, sample: Sample | None
) -> TableLoad:
    known = {feature.name: feature for feature in spec.features}
    ids, found = 0.0, []
    for name in table.feature_names:
        if sample is not None and name in sample:
            values, rows = sample[name]
            ids += len(values) / max(rows, 1)
            found.append(values)
            continue
        feature = known.get(name)
        statistics = feature.statistics if feature is not None else None
        if isinstance(statistics, SparseStatistics):
            length = statistics.mean_length
        else:
            length = DEFAULT_SEQUENCE if feature is not None and feature.kind == "sequence" else DEFAULT_IDS
        ids += min(length, tables.lengths.get(name, length))
    owners = {spec.vocabulary_owner(name) for name in table.feature_names if name in known}
    popularity = Popularity.uniform(table.num_embeddings)
    if found:
        ordered = not owners & set(config.data.unbounded)
        popularity = Popularity.of_sample(np.concatenate(found), table.num_embeddings, ordered)
    return TableLoad(
        table.name, table.num_embeddings, table.embedding_dim, len(table.feature_names), ids, popularity, table.pooled
    )


def sample_ids(config: RunConfig, dataset: Dataset, tables: TableSet, rows: int = SAMPLED_ROWS) -> Sample | None:
    """Read ids of up to ``rows`` rows of the training split; None if it has no readable file yet.

    Args:
        config: configuration of the run.
        dataset: its data set.
        tables: the tables; of flattened features, only the ids that are looked up count.
        rows: number of rows.
    """
    try:
        files = dataset.split(TRAINING_SPLIT).files
    except UserError:
        return None  # a plan may come before the data
    selection = select(dataset.spec, config.data.model_copy(update={"weight": None}), [], served=True)
    layout = check_files(files, selection, labels_required=False)
    builder = BlockBuilder(layout, lambda feature, count: None)
    found: dict[str, list[Tensor]] = {}
    total = 0
    for file, group in _spread(files):
        table = file.read_group(file.open(), group, layout.columns).slice(0, max(rows // SAMPLED_GROUPS, 1))
        block = builder.build(Sources([table], [(table.num_rows, file.path, 0)]))
        sparse = assemble(layout, [BlockRows(block, 0, table.num_rows)]).sparse
        recent = most_recent(sparse, sparse.keys(), tables.lengths)
        for name in sparse.keys():  # noqa: SIM118  (a KeyedJaggedTensor)
            found.setdefault(name, []).append(recent[name].values())
        total += table.num_rows
    return {name: (torch.cat(parts).long().numpy(), total) for name, parts in found.items()}


def _spread(files: Sequence[DataFile]) -> list[tuple[DataFile, int]]:
    """Up to SAMPLED_GROUPS row groups, evenly spread over all of the files."""
    groups = [(file, group) for file in files for group in range(file.metadata.num_row_groups)]
    step = max(len(groups) / SAMPLED_GROUPS, 1.0)
    return [groups[int(number * step)] for number in range(min(len(groups), SAMPLED_GROUPS))]
