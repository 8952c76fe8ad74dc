"""Metrics of a model over a whole split, exact over all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dlrm_mtl.config.metric_columns import MetricColumns
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.evaluation.compute import SplitRows, evaluate_rows, with_metrics
from dlrm_mtl.evaluation.results import SplitEvaluation
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.targets import Targets
from dlrm_mtl.training.loaders import make_loader
from dlrm_mtl.training.sharded_model import ShardedModel


class Evaluator:
    """Evaluation of models on one split.

    Args:
        config: configuration of the run.
        dataset: its data set.
        split: name of the split.
        process: this process.
        sliced: False to leave slices out.

    Raises:
        UserError: the data set has no such split, or lacks a column.
    """

    def __init__(
        self, config: RunConfig, dataset: Dataset, split: str, process: Process, *, sliced: bool = True
    ) -> None:
        self.columns = MetricColumns.of(config.metrics, dataset.spec, sliced=sliced)
        self.loader = make_loader(config, dataset, split, process, self.columns.carried)
        self._tasks, self._device = config.tasks, process.device

    def __call__(self, model: ShardedModel, on_progress: Callable[[int], None] | None = None) -> SplitEvaluation:
        """Evaluate ``model``, see :func:`evaluate`."""
        return evaluate(model, self.loader, self._tasks, self._device, on_progress, self.columns)


@torch.no_grad()
def evaluate(
    model: ShardedModel,
    loader: BatchLoader,
    tasks: Sequence[TaskConfig],
    device: torch.device,
    on_progress: Callable[[int], None] | None = None,
    columns: MetricColumns | None = None,
) -> SplitEvaluation:
    """Compute every metric of every task's kind. Every process must call this, and all get the same result.

    A process holds 12 bytes for each of its rows and tasks, and 8 for each carried column.

    Args:
        model: the sharded model.
        loader: loader of this process's part of the split.
        tasks: tasks of the model.
        device: device of the model.
        on_progress: called with the number of finished batches, of ``loader.steps_per_epoch``.
        columns: the carried columns of ``loader``.
    """
    model.module.eval()
    targets = Targets(tasks)
    parts: list[torch.Tensor] = []
    pairs: list[torch.Tensor] = []
    carried: list[torch.Tensor] = []
    for step, batch in enumerate(loader.epoch(0)):
        logits = model.module(batch.to(device)).cpu()
        parts.append(torch.stack([logits, *targets(batch.labels, batch.weights)]))  # [3, B, T]
        if batch.carried is not None:
            carried.append(batch.carried)
        if model.full_ranking:
            pairs.append(model.full_ranking.pairs(batch))
        if on_progress:
            on_progress(step + 1)
    local = torch.cat(parts, dim=1) if parts else torch.empty(3, 0, len(tasks))
    codes = torch.cat(carried, dim=1) if carried else torch.empty(0, local.shape[1], dtype=torch.int64)
    scores, labels, weights = local.numpy()
    found = evaluate_rows(SplitRows(scores, labels, weights, codes.numpy()), tasks, columns or MetricColumns())
    if model.full_ranking:
        everything = _gathered(local)
        ids = _gathered(torch.cat(pairs, dim=1) if pairs else torch.empty(2, 0, dtype=torch.int64))
        observed = {} if everything is None else _observed(everything, tasks)
        more = [model.full_ranking.metrics(ids, observed)]
        dist.broadcast_object_list(more)
        found = with_metrics(found, more[0], tasks)
    model.module.train()
    return found


def _gathered(local: torch.Tensor) -> NDArray[Any] | None:
    """Parts of all processes on the first one, concatenated in the second dimension."""
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(local, parts)
    return None if parts is None else torch.cat(parts, dim=1).numpy()


def _observed(everything: NDArray[Any], tasks: Sequence[TaskConfig]) -> dict[str, NDArray[np.bool_]]:
    """Mask of the rows whose user and item belong together, by ranking task."""
    _, labels, weights = everything
    return {
        task.name: (labels[:, column] > 0) & (weights[:, column] > 0)
        for column, task in enumerate(tasks)
        if task.kind == "ranking"
    }
