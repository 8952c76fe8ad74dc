"""Labels and weights of the tasks in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlrm_mtl.core.batch_random import BatchRandom
from dlrm_mtl.tasks.config import TaskConfig

SAMPLING_LAYER = 1 << 32
"""Layer number of the draws of negative sampling; differs from those of dropout layers."""


def label_columns(tasks: Sequence[TaskConfig]) -> list[str]:
    """Labels to read, in the order of ``Batch.labels``: one per task, then those that only masks need."""
    own = [task.label_name for task in tasks]
    masks = [task.only_where for task in tasks if task.only_where is not None]
    return own + [name for name in dict.fromkeys(masks) if name not in own]


class Targets:
    """Map from a batch's labels and weights, in the order of :func:`label_columns`, to those of the tasks.

    Shapes: B rows, T tasks, L >= T columns.

    Args:
        tasks: the tasks.
        device: device of the tensors.
    """

    def __init__(self, tasks: Sequence[TaskConfig], device: torch.device | str = "cpu") -> None:
        columns = label_columns(tasks)
        self.tasks = len(tasks)
        self.masks = [
            (task, columns.index(config.only_where))
            for task, config in enumerate(tasks)
            if config.only_where is not None
        ]
        self.ranking = [number for number, task in enumerate(tasks) if task.kind == "ranking"]
        self.samples = any(task.negative_sampling < 1.0 for task in tasks)
        self.rates = torch.tensor([task.negative_sampling for task in tasks], device=device)  # [T]

    def __call__(self, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Drop the rows in which a task is not defined.

        Args:
            labels: [B, L].
            weights: [B, L], 0 for a null label.

        Returns:
            Labels and weights [B, T]. The weight is 0 if the label of the task's mask is 0 or null. The label of a ranking
            task is 1 if it was above 0, else 0.
        """
        own, counted = labels[:, : self.tasks], weights[:, : self.tasks]
        if self.ranking:
            own = own.clone()
            own[:, self.ranking] = (own[:, self.ranking] > 0).to(own.dtype)
        if self.masks:
            counted = counted.clone()
            for task, mask in self.masks:
                counted[:, task] *= (labels[:, mask] == 1.0) & (weights[:, mask] > 0.0)
        return own, counted

    def sampled(self, labels: Tensor, weights: Tensor, draws: BatchRandom) -> tuple[Tensor, Tensor]:
        """Drop undefined rows, and in training also negatives of the tasks with negative sampling, separately for each task.

        Ranking tasks learn only from positives; the model draws the items to compare them with.

        Args:
            labels: [B, L].
            weights: [B, L].
            draws: random draws, set to the current step.

        Returns:
            Labels and weights [B, T].
        """
        labels, weights = self(labels, weights)
        if self.samples:
            uniform = draws.uniform(SAMPLING_LAYER, len(labels), self.tasks, weights.device)
            weights = weights * ((labels == 1.0) | (uniform < self.rates))
        if self.ranking:
            weights = weights.clone()
            weights[:, self.ranking] *= labels[:, self.ranking]
        return labels, weights


def predictions(logits: Tensor, tasks: Sequence[TaskConfig]) -> Tensor:
    """Predictions of the tasks [B, T]: probabilities for binary labels, logits for real ones."""
    binary = torch.tensor([task.kind == "binary" for task in tasks], device=logits.device)
    return torch.where(binary, torch.sigmoid(logits), logits)
