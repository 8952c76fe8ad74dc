"""What a gradient balancer is: a function of the inner products of the tasks' gradients.

Shapes: T tasks, G groups of parameters. K is the Gram matrix of one group: K[i, j] is the inner product of the gradients g_i
and g_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dlrm_mtl.core.parts import Misfit, Run
from dlrm_mtl.core.schema import PartConfig
from dlrm_mtl.core.suggest import suggest

Granularity = Literal["tensor", "group", "global"]
Level = Literal["parameters", "representation"]


class AnyBalancingConfig(PartConfig):
    """A value of ``balancing``: no method, one, or several in a row."""

    def methods(self) -> list[tuple[str, BalancerConfig]]:
        """The methods in the order in which they are applied, each with the path of its keys below ``balancing``."""
        raise NotImplementedError


class BalancerConfig(AnyBalancingConfig):
    """What all methods have in common."""

    granularity: Granularity = "global"
    """Which gradients are compared as one vector: each shared `tensor` for itself (a table is one tensor), the tables together
    and the dense tensors together (`group`), or all of them (`global`)."""
    level: Level = "parameters"
    """Where the tables' gradients are compared: `parameters` takes the rows' gradients, one backward pass through the tables
    per task; `representation` takes the gradients of the pooled features and sends one combined gradient into the tables,
    which is cheaper and an approximation. Dense tensors are compared by their own gradients under both."""
    seed: int = 0
    """Together with the step, determines the order of tasks in the methods that draw one."""

    def methods(self) -> list[tuple[str, BalancerConfig]]:
        """This method alone."""
        return [("", self)]

    def check(self, run: Run) -> None:
        """Refuse what does not fit the tasks of a run."""
        self.check_tasks([task.name for task in run.tasks])

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Refuse what does not fit tasks of these names; raises :class:`Misfit`."""


class TargetConfig(BalancerConfig):
    """Methods that help one task by means of the others."""

    target: str
    """The task that counts; the others are its auxiliaries."""

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Refuse a target that is no task."""
        if self.target not in tasks:
            raise Misfit(f"there is no task {self.target!r}; {suggest(self.target, tasks)}.", "target")


class ReductionConfig(BalancerConfig):
    """Methods that are stated for the mean over tasks."""

    reduction: Literal["sum", "mean"] = "sum"
    """`sum` multiplies what `mean` gives by the number of tasks, so that the update is of the size of the plain sum's."""

    def factor(self, tasks: int) -> float:
        """What a mean over ``tasks`` tasks is multiplied by."""
        return float(tasks) if self.reduction == "sum" else 1.0


class Balancer(nn.Module):
    """Maps the T tasks' gradients of shared parameters to T adjusted gradients, knowing only their inner products.

    Everything that is kept from step to step is a buffer. All processes that call a balancer with the same numbers hold the
    same state.
    """

    step: int
    """The number of the step, set before every call; random choices are a pure function of the seed and this."""
    needs_losses_after: bool = False
    """Whether :meth:`after` is to be called after every update that was applied."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return M [G, T, T] float64: the adjusted gradient i of group g is sum_j M[g, i, j] g_j.

        The update uses the sum over i, see :func:`coefficients`.

        Args:
            gram: [G, T, T] float64 on the CPU, finite: inner products of the tasks' gradients for each group of parameters.
            losses: [T] float64, the tasks' losses on the global batch; 0 for a task without a row in it.
        """
        raise NotImplementedError

    def after(self, losses: Tensor) -> None:
        """Take note of the tasks' losses on the same batch after the update.

        Args:
            losses: [T] float64, as in :meth:`transform`.
        """


def coefficients(matrices: Tensor) -> Tensor:
    """What each task's gradient is multiplied by in the combined gradient: [G, T, T] -> [G, T]."""
    return matrices.sum(dim=-2)


def norms(gram: Tensor) -> Tensor:
    """The norms of the tasks' gradients: [G, T, T] -> [G, T]."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def has_gradient(gram: Tensor) -> Tensor:
    """Whether each task has a gradient in each group: [G, T, T] -> [G, T] bool."""
    return gram.diagonal(dim1=-2, dim2=-1) > torch.finfo(torch.float64).tiny


def cosines(gram: Tensor) -> Tensor:
    """Cosines between the tasks' gradients [G, T, T]; 0 beside a task without a gradient, whose own is 1."""
    present = has_gradient(gram)
    inverse = torch.where(present, norms(gram).reciprocal(), 0.0)
    result = (inverse.unsqueeze(-1) * gram * inverse.unsqueeze(-2)).clamp(-1.0, 1.0)
    result.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return result


def orders(seed: int, step: int, tasks: int) -> Tensor:
    """For each task the others in random order, [T, T - 1] int64; a pure function of its arguments."""
    words = np.random.SeedSequence(seed, spawn_key=(step,)).generate_state(tasks * tasks, np.uint64)
    drawn = torch.from_numpy(np.argsort(words.reshape(tasks, tasks), axis=1, kind="stable"))
    others = drawn != torch.arange(tasks).unsqueeze(1)
    return drawn[others].view(tasks, tasks - 1)
