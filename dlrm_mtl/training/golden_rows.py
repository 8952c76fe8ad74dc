"""Golden rows: the first rows of a split, scored by the model in training, to compare a served model with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.row_reader import RowReader
from dlrm_mtl.models.input_sums import ROWS, Sums, input_sums
from dlrm_mtl.tasks.targets import predictions
from dlrm_mtl.training.sharded_model import ShardedModel

GOLDEN_SPLITS = ("input", "test", "validation", "train")
"""Splits that golden rows are taken from, in order of preference; ``input`` means files outside the data set."""


@dataclass(frozen=True)
class GoldenScores:
    """Scores of the golden rows, and sums of the input that the model had for them."""

    scores: NDArray[np.float32]
    """[N, T] predictions."""
    sums: Sums


class GoldenRows:
    """The first rows of a split.

    Args:
        config: configuration of the run.
        dataset: data set with the split.

    Raises:
        UserError: the data set has no split to take rows from, or it cannot be read.
    """

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        split = next((name for name in GOLDEN_SPLITS if name in dataset.spec.splits), None)
        if split is None:
            raise UserError(
                f"{dataset.path}: has no split {' or '.join(GOLDEN_SPLITS[1:])} to take golden rows from; name rows by "
                "--golden."
            )
        self._tasks = config.tasks
        chosen = select(dataset.spec, config.data, [], served=True)
        self._dense = [feature.name for feature in chosen.dense]
        files = dataset.split(split).files
        reader = RowReader(files, dataset.spec, config.data, ROWS, chosen.feature_columns, [])
        rows: list[dict[str, Any]] = []
        self._batches: list[Batch] = []
        self.sizes: list[int] = []
        """Numbers of rows that are scored at a time: their sum may be larger than :data:`ROWS`."""
        batches = iter(reader)
        try:
            for batch, carried in batches:
                rows += carried.to_pylist()
                self._batches.append(batch)
                self.sizes.append(carried.num_rows)
                if len(rows) >= ROWS:
                    break
        finally:
            batches.close()
        self.read = rows
        """All rows that are scored, as they are stored, by column."""
        self.rows = rows[:ROWS]
        """The golden ones of them."""

    @torch.no_grad()
    def scored_by(self, model: ShardedModel) -> GoldenScores:
        """Score the rows; every process must call this. The model is in evaluation mode afterwards.

        Args:
            model: the trained model.
        """
        scores, features, dense = [], [], []
        model.module.eval()
        lookup = model.ranker.lookup
        for batch in self._batches:
            batch = batch.to(model.device)
            scores.append(predictions(model.module(batch), self._tasks).cpu())
            features.append(lookup(model.ranker.ids(batch)).cpu())
            dense.append(batch.dense.cpu())
        sums = input_sums(torch.cat(features)[:ROWS], lookup.widths, lookup.names, torch.cat(dense)[:ROWS], self._dense)
        return GoldenScores(torch.cat(scores)[:ROWS].numpy().astype(np.float32), sums)
