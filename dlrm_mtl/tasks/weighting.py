"""Weightings that combine the tasks' losses: fixed weights, learned weights, weights that follow the losses' course.

Shapes: T tasks. A new weighting is one new file here, or in a plugin: a :class:`WeightingConfig`, registered as
``task_weighting``, and the :class:`TaskWeighting` that it builds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from dlrm_mtl.core.parts import Part
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import PartConfig


class WeightingConfig(PartConfig):
    """Base of the configurations of all weightings."""

    def build(self, tasks: int) -> TaskWeighting:
        """Build the module for ``tasks`` tasks, to be made part of the model."""
        raise NotImplementedError


TaskWeightingConfig = Annotated[WeightingConfig, Part("task_weighting")]
"""Name of a weighting, or a mapping with its options."""


@register("task_weighting", "fixed", order=10)
class FixedWeightingConfig(WeightingConfig):
    """The tasks' own weights, and nothing else."""

    name: Literal["fixed"] = "fixed"

    def build(self, tasks: int) -> TaskWeighting:
        """Build the module for ``tasks`` tasks."""
        return FixedWeighting(tasks)


@register("task_weighting", "uncertainty", order=20)
class UncertaintyWeightingConfig(WeightingConfig):
    """A learned weight for every task (Kendall, Gal and Cipolla, CVPR 2018)."""

    name: Literal["uncertainty"] = "uncertainty"
    initial_log_variance: float = -0.5
    """Initial value of the learned log variances s; a task's loss L contributes L / (2 e^s) + s / 2."""

    def build(self, tasks: int) -> TaskWeighting:
        """Build the module for ``tasks`` tasks."""
        return UncertaintyWeighting(tasks, self.initial_log_variance)


@register("task_weighting", "dwa", order=30)
class DynamicWeightAverageConfig(WeightingConfig):
    """Tasks whose loss falls more slowly count more (Liu, Johns and Davison, CVPR 2019)."""

    name: Literal["dwa"] = "dwa"
    temperature: float = Field(default=2.0, gt=0)
    """High values bring the weights closer together."""

    def build(self, tasks: int) -> TaskWeighting:
        """Build the module for ``tasks`` tasks."""
        return DynamicWeightAverage(tasks, self.temperature)


class TaskWeighting(nn.Module):
    """Combination of the tasks' losses. Its parameters are trained and its buffers saved with the model that it is part of."""

    def terms(self, parts: Tensor, task_weights: Tensor, totals: Tensor, processes: int = 1) -> Tensor:
        """Term of each task in this process's part of the loss, [T].

        Args:
            parts: [T], this process's parts of the tasks' losses.
            task_weights: [T], the configured weights.
            totals: [T], the weight of each task's rows in the global batch; 0 for a task without a loss.
            processes: number of parts that are added up, over processes and their micro-batches.
        """
        raise NotImplementedError

    def start(self, epoch: int) -> None:
        """Set the epoch of the next step."""

    def observe(self, parts: Tensor, totals: Tensor) -> None:
        """Update the state by the losses of an applied step. Every process must call this.

        Args:
            parts: [T], this process's parts of the tasks' losses.
            totals: [T], the weight of each task's rows in the global batch.
        """


class FixedWeighting(TaskWeighting):
    """sum_t w_t L_t."""

    def __init__(self, tasks: int) -> None:
        super().__init__()

    def terms(self, parts: Tensor, task_weights: Tensor, totals: Tensor, processes: int = 1) -> Tensor:
        """Term of each task, [T], see :class:`TaskWeighting`."""
        return parts * task_weights


class UncertaintyWeighting(TaskWeighting):
    """sum_t w_t (L_t / (2 e^s_t) + s_t / 2), with s_t learned along with the model's dense parameters.

    Without other influences, s_t goes to log L_t. A configured weight w_t multiplies the whole term, or s_t would undo it.
    The second half is omitted for a task without a row in the global batch, whose s_t would fall without a loss.
    """

    def __init__(self, tasks: int, initial_log_variance: float = -0.5) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.full((tasks,), initial_log_variance))

    def terms(self, parts: Tensor, task_weights: Tensor, totals: Tensor, processes: int = 1) -> Tensor:
        """Term of each task, [T], see :class:`TaskWeighting`."""
        terms = 0.5 * parts * torch.exp(-self.log_variances)
        terms = terms + 0.5 * self.log_variances * (totals > 0) / processes
        return terms * task_weights


class DynamicWeightAverage(TaskWeighting):
    """sum_t w_t a_t L_t with a = T softmax(r / temperature), r_t = L_t(e - 1) / L_t(e - 2) for the mean losses of epochs.

    r_t is 1 if it is not defined: in the first two epochs, and for a task without a loss in one of them. Losses are added
    up over all processes (one more all-reduce of T numbers a step) and saved with the model, so a resumed run continues
    identically.
    """

    sums: Tensor
    counts: Tensor
    means: Tensor
    epoch: Tensor

    def __init__(self, tasks: int, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("sums", torch.zeros(tasks, dtype=torch.float64))  # sums of this epoch's losses
        self.register_buffer("counts", torch.zeros(tasks, dtype=torch.float64))  # steps in which the task had a loss
        self.register_buffer("means", torch.full((2, tasks), float("nan"), dtype=torch.float64))  # e - 2, e - 1
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    @property
    def weights(self) -> Tensor:
        """[T], positive, with sum T."""
        ratios = self.means[1] / self.means[0]
        ratios = torch.where(torch.isfinite(ratios), ratios, torch.ones_like(ratios))
        return (len(ratios) * torch.softmax(ratios / self.temperature, dim=0)).float()

    def terms(self, parts: Tensor, task_weights: Tensor, totals: Tensor, processes: int = 1) -> Tensor:
        """Term of each task, [T], see :class:`TaskWeighting`."""
        return parts * task_weights * self.weights

    @torch.no_grad()
    def start(self, epoch: int) -> None:
        """Set the epoch of the next step; a new epoch closes the previous one."""
        if epoch != int(self.epoch):
            self.means.copy_(torch.stack([self.means[1], self.sums / self.counts]))
            self.sums.zero_()
            self.counts.zero_()
            self.epoch.fill_(epoch)

    @torch.no_grad()
    def observe(self, parts: Tensor, totals: Tensor) -> None:
        """Add the losses of an applied step. Every process must call this."""
        losses = parts.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(losses)
        self.sums += losses
        self.counts += totals > 0
