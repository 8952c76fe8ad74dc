"""Metrics of a model over a whole split, exact over all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.evaluation.columns import MetricColumns
from dlrm_mtl.evaluation.results import MetricSlice, SliceTask, Slicing, SplitEvaluation
from dlrm_mtl.evaluation.slices import SliceNames, by, shared_slices
from dlrm_mtl.metrics import ALL_METRICS, METRICS
from dlrm_mtl.metrics.score_bins import score_bins
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.targets import Targets
from dlrm_mtl.training.loaders import make_loader
from dlrm_mtl.training.sharded_model import ShardedModel

Array = NDArray[np.float64]
Ids = NDArray[np.int64]


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
        self.columns = MetricColumns(config.metrics, dataset.spec, sliced=sliced)
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

    The first process temporarily holds 12 bytes per row and task: ranking metrics are computed from all scores.

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
    scores, labels, weights = local.numpy()
    bins = score_bins(scores, labels, weights, [task.kind for task in tasks], _total)
    everything = _gathered(local)
    more: dict[str, float] = {}
    if model.full_ranking:
        ids = _gathered(torch.cat(pairs, dim=1) if pairs else torch.empty(2, 0, dtype=torch.int64))
        observed = {} if everything is None else _observed(everything, tasks)
        more = model.full_ranking.metrics(ids, observed)
    model.module.train()
    slicings: list[Slicing] = []
    rows = None if everything is None else everything.astype(np.float64)
    for number, config in enumerate(columns.slices if columns else []):
        assert columns is not None
        codes = torch.cat([each[number] for each in carried]).numpy() if carried else np.empty(0, np.int64)
        counted = (local[2] > 0).any(dim=1).numpy()  # padding is in no slice
        slice_of = np.full(len(codes), -1)
        slice_of[counted], names = shared_slices(config, columns.carried[number].encoder, codes[counted])
        whole = _gathered(torch.from_numpy(slice_of)[None])
        if rows is not None and whole is not None:
            slicings.append(Slicing(config.column, by(config), _sliced(rows, whole[0], names, tasks)))
    result = [None if rows is None else (_metrics(rows, tasks, more), slicings)]
    dist.broadcast_object_list(result)
    assert result[0] is not None
    return SplitEvaluation(result[0][0], {task.name: own for task, own in zip(tasks, bins, strict=True)}, result[0][1])


def _total(array: NDArray[Any]) -> NDArray[Any]:
    """Sum over all processes."""
    summed = torch.from_numpy(array)
    dist.all_reduce(summed)
    return summed.numpy()


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


def _metrics(rows: Array, tasks: Sequence[TaskConfig], more: dict[str, float]) -> dict[str, float]:
    """Metrics of all tasks; ``more`` holds those that are not of single rows."""
    result: dict[str, float] = {}
    for column, task in enumerate(tasks):
        logits, labels, weights = rows[:, :, column]
        counted = weights > 0
        for name, metric in METRICS[task.kind].items():
            key = f"{task.name}/{name}"
            result[key] = more[key] if key in more else metric(logits[counted], labels[counted], weights[counted])
    for name in ALL_METRICS:
        values = [result[f"{task.name}/{name}"] for task in tasks if name in METRICS[task.kind]]
        if not values:
            continue
        defined = [value for value in values if not np.isnan(value)]
        result[f"mean/{name}"] = float(np.mean(defined)) if defined else float("nan")
    return result


def _sliced(rows: Array, slice_of: Ids, names: SliceNames, tasks: Sequence[TaskConfig]) -> list[MetricSlice]:
    """Metrics of single rows in every slice; slices without rows are left out."""
    result = []
    for number, label in enumerate(names.labels):
        own = slice_of == number
        if not own.any():
            continue
        of_tasks = {}
        for column, task in enumerate(tasks):
            counted = own & (rows[2, :, column] > 0)
            logits, labels, weights = rows[:, counted, column]
            metrics = {
                name: metric(logits, labels, weights)
                for name, metric in METRICS[task.kind].items()
                if not metric.of_positions
            }
            positives = int((labels > 0).sum()) if task.kind != "real" else None
            of_tasks[task.name] = SliceTask(len(labels), positives, metrics)
        result.append(MetricSlice(label, names.kinds[number], int(own.sum()), of_tasks, names.values[number]))
    return result
