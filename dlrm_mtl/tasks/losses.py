"""One loss per task over the global batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from dlrm_mtl.tasks.config import TaskConfig


class TaskLosses:
    """The losses of all tasks, each the weighted mean over the global batch (not a mean of processes' means)."""

    def __init__(self, tasks: list[TaskConfig], device: torch.device) -> None:
        self.names = [task.name for task in tasks]
        self.task_weights = torch.tensor([task.weight for task in tasks], device=device)  # [T]

    def __call__(self, logits: Tensor, labels: Tensor, weights: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss to call ``backward()`` on, and this process's part of each task's loss for logging.

        DDP and TorchRec both average gradients over processes; the first value is therefore multiplied by their number, so
        that the averaged gradient is that of the global loss.

        Args:
            logits: [B, T].
            labels: [B, T].
            weights: [B, T], zero for rows that do not count.
            totals: [T], the sum of ``weights`` over the global batch.

        Returns:
            The loss to differentiate (scalar), and [T] parts that sum over processes to the tasks' losses. A task without
            any weight in the global batch has loss 0.
        """
        per_row = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        parts = (per_row * weights).sum(dim=0) / torch.where(totals > 0, totals, torch.ones_like(totals))
        return (parts * self.task_weights).sum() * dist.get_world_size(), parts.detach()
