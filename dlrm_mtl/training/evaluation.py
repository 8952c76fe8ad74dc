"""Metrics of a model over a whole split, exact over all processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.metrics import ALL_METRICS, METRICS
from dlrm_mtl.metrics.score_bins import ScoreBins, score_bins
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.targets import Targets
from dlrm_mtl.training.sharded_model import ShardedModel


@dataclass(frozen=True)
class SplitEvaluation:
    """Result of an evaluation, the same on every process."""

    metrics: dict[str, float]
    """``TASK/METRIC``, and ``mean/METRIC`` for the mean over the tasks that define it; nan if undefined."""
    scores: dict[str, ScoreBins]
    """Scores in bins, by task."""


@torch.no_grad()
def evaluate(
    model: ShardedModel,
    loader: BatchLoader,
    tasks: list[TaskConfig],
    device: torch.device,
    on_progress: Callable[[int], None] | None = None,
) -> SplitEvaluation:
    """Compute every metric of every task's kind. Every process must call this, and all get the same result.

    The first process temporarily holds 12 bytes per row and task: ranking metrics are computed from all scores.

    Args:
        model: the sharded model.
        loader: loader of this process's part of the split.
        tasks: tasks of the model.
        device: device of the model.
        on_progress: called with the number of finished batches, of ``loader.steps_per_epoch``.
    """
    model.module.eval()
    targets = Targets(tasks)
    parts: list[torch.Tensor] = []
    pairs: list[torch.Tensor] = []
    for step, batch in enumerate(loader.epoch(0)):
        logits = model.module(batch.to(device)).cpu()
        parts.append(torch.stack([logits, *targets(batch.labels, batch.weights)]))  # [3, B, T]
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
    result = [{} if everything is None else _metrics(everything.astype(np.float64), tasks, more)]
    dist.broadcast_object_list(result)
    return SplitEvaluation(result[0], {task.name: own for task, own in zip(tasks, bins, strict=True)})


def _total(array: NDArray[Any]) -> NDArray[Any]:
    """Sum over all processes."""
    summed = torch.from_numpy(array)
    dist.all_reduce(summed)
    return summed.numpy()


def _gathered(local: torch.Tensor) -> np.ndarray | None:
    """Parts of all processes on the first one, concatenated in the second dimension."""
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(local, parts)
    return None if parts is None else torch.cat(parts, dim=1).numpy()


def _observed(everything: np.ndarray, tasks: list[TaskConfig]) -> dict[str, np.ndarray]:
    """Mask of the rows whose user and item belong together, by ranking task."""
    _, labels, weights = everything
    return {
        task.name: (labels[:, column] > 0) & (weights[:, column] > 0)
        for column, task in enumerate(tasks)
        if task.kind == "ranking"
    }


def _metrics(everything: np.ndarray, tasks: list[TaskConfig], more: dict[str, float]) -> dict[str, float]:
    """Metrics of all tasks; ``more`` holds those that are not of single rows."""
    result: dict[str, float] = {}
    for column, task in enumerate(tasks):
        logits, labels, weights = everything[:, :, column]
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
