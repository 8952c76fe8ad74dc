"""One loss per task over the global batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.loss import RowLossConfig
from dlrm_mtl.tasks.weighting import FixedWeighting, TaskWeighting


class TaskLosses:
    """Losses of all tasks, each the weighted mean over the global batch (not a mean of processes' means).

    A model's logit is always that of the probability over all rows. If negatives are kept at rate r, the odds are 1 / r
    times higher. So a task with negative sampling compares its labels with logit - log r, and predictions need no
    correction later.

    Args:
        tasks: the tasks.
        device: device of the losses.
        weighting: weights of the tasks' losses in the sum, besides the configured weights; default: 1 each.
    """

    def __init__(
        self, tasks: Sequence[TaskConfig], device: torch.device, weighting: TaskWeighting | None = None
    ) -> None:
        self.names = [task.name for task in tasks]
        self.task_weights = torch.tensor([task.weight for task in tasks], device=device)  # [T]
        self.weighting = weighting if weighting is not None else FixedWeighting(len(tasks))
        offsets = [-math.log(task.negative_sampling) for task in tasks]
        self.offsets = torch.tensor(offsets, device=device) if any(offsets) else None  # [T]
        self.groups = _groups(tasks, device)
        order = torch.cat([columns for _, columns, _ in self.groups])
        self.order = torch.argsort(order) if len(self.groups) > 1 else None

    def per_row(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses [B, T] of single rows; both arguments are [B, T]. Tasks with the same loss are computed together."""
        if self.offsets is not None:
            logits = logits + self.offsets
        if self.order is None:
            loss, _, positive_weights = self.groups[0]
            return loss.per_row(logits, labels, positive_weights)
        parts = [
            loss.per_row(logits[:, columns], labels[:, columns], positive_weights)
            for loss, columns, positive_weights in self.groups
        ]
        return torch.cat(parts, dim=1)[:, self.order]

    def parts(self, logits: Tensor, labels: Tensor, weights: Tensor, totals: Tensor) -> Tensor:
        """This process's parts of the tasks' losses, [T], differentiable; they sum to the losses over all processes."""
        summed = (self.per_row(logits, labels) * weights).sum(dim=0)
        return summed / torch.where(totals > 0, totals, torch.ones_like(totals))

    def __call__(
        self, logits: Tensor, labels: Tensor, weights: Tensor, totals: Tensor, pieces: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Compute each task's term of the loss, and this process's part of each task's loss for logging.

        DDP and TorchRec both average gradients over processes. The terms are therefore multiplied by the number of
        processes, so that the averaged gradient of their sum is that of the global loss.

        Args:
            logits: [B, T].
            labels: [B, T].
            weights: [B, T], zero for ignored rows.
            totals: [T], the sum of ``weights`` over the global batch.
            pieces: number of pieces of this process's rows, of which these are one; results add up over them.

        Returns:
            [T] terms, whose sum is the loss to differentiate, and [T] parts that sum over processes to the tasks' losses. A
            task without any weight in the global batch has loss 0.
        """
        parts = self.parts(logits, labels, weights, totals)
        processes = dist.get_world_size() if dist.is_initialized() else 1
        return self.weighting.terms(parts, self.task_weights, totals, processes * pieces) * processes, parts.detach()


def _groups(tasks: Sequence[TaskConfig], device: torch.device) -> list[tuple[RowLossConfig, Tensor, Tensor | None]]:
    """Groups by loss: (loss, columns of its tasks, their positive weights unless all are 1)."""
    columns: dict[RowLossConfig, list[int]] = {}
    for column, task in enumerate(tasks):
        columns.setdefault(task.loss, []).append(column)
    groups: list[tuple[RowLossConfig, Tensor, Tensor | None]] = []
    for loss, own in columns.items():
        weights = [tasks[column].positive_weight for column in own]
        weighed = any(weight != 1.0 for weight in weights)
        groups.append(
            (loss, torch.tensor(own, device=device), torch.tensor(weights, device=device) if weighed else None)
        )
    return groups
