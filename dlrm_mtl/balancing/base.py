"""Base of the gradient balancers: functions of the inner products of the tasks' gradients.

Shapes: T tasks, G groups of parameters. K is the Gram matrix of one group: K[i, j] is the inner product of the gradients
g_i and g_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dlrm_mtl.core.parts import Misfit, RunConfigLike
from dlrm_mtl.core.schema import PartConfig
from dlrm_mtl.core.suggest import suggest

Granularity = Literal["tensor", "group", "global"]
Level = Literal["parameters", "representation"]


class AnyBalancingConfig(PartConfig):
    """A value of ``balancing``: no method, one, or several in a row."""

    def methods(self) -> list[tuple[str, BalancerConfig]]:
        """Methods in the order of their application, each with the path of its keys below ``balancing``."""
        raise NotImplementedError


class BalancerConfig(AnyBalancingConfig):
    """Base of the configurations of all methods."""

    granularity: Granularity = "global"
    """Gradients that are compared as one vector: each shared `tensor` separately (a table is one tensor), the tables
    together and the dense tensors together (`group`), or all of them (`global`)."""
    level: Level = "parameters"
    """Level at which the tables' gradients are compared. `parameters` uses the rows' gradients, with one backward pass
    through the tables per task. `representation` uses the gradients of the pooled features and sends one combined gradient
    into the tables, which is cheaper and an approximation. Dense tensors are compared by their own gradients under both."""
    every: int = Field(default=1, ge=1)
    """Number of steps after which the gradients are separated and balanced again. In the steps between, the tasks' losses are
    weighted by the coefficients of the last balanced step, one number per task for all shared tensors (see
    docs/balancing.md), in a single backward pass: cheaper, and an approximation."""
    seed: int = 0
    """Seed that, together with the step, determines the random order of tasks in some methods."""

    def methods(self) -> list[tuple[str, BalancerConfig]]:
        """This method alone."""
        return [("", self)]

    def check(self, run: RunConfigLike) -> None:
        """Refuse a method that does not fit the tasks of a run."""
        self.check_tasks([task.name for task in run.tasks])

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Refuse a method that does not fit tasks of these names; raises :class:`Misfit`."""


class TargetConfig(BalancerConfig):
    """Base of methods that help one task by means of the others."""

    target: str
    """Task that counts; the others are its auxiliaries."""

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Refuse a target that is not a task."""
        if self.target not in tasks:
            raise Misfit(f"there is no task {self.target!r}; {suggest(self.target, tasks)}.", "target")


class ReductionConfig(BalancerConfig):
    """Base of methods that are defined for the mean over tasks."""

    reduction: Literal["sum", "mean"] = "sum"
    """`mean` follows the definition; `sum` multiplies it by the number of tasks, so that the update has the size of the
    plain sum's."""

    def factor(self, tasks: int) -> float:
        """Factor of a mean over ``tasks`` tasks."""
        return float(tasks) if self.reduction == "sum" else 1.0


class Balancer(nn.Module):
    """A map from T tasks' gradients of shared parameters to T adjusted gradients, given only their inner products.

    All state between steps is in buffers. All processes that call a balancer with the same numbers hold the same state.
    """

    step: int
    """Number of the step, set before every call; random choices are a pure function of the seed and this."""
    needs_losses_after: bool = False
    """True if :meth:`after` must be called after every applied update."""

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
        """Update the state by the tasks' losses on the same batch after the update.

        Args:
            losses: [T] float64, as in :meth:`transform`.
        """


def coefficients(matrices: Tensor) -> Tensor:
    """Coefficients of each task's gradient in the combined gradient: [G, T, T] -> [G, T]."""
    return matrices.sum(dim=-2)


def task_coefficients(per_tensor: Tensor, gram: Tensor) -> Tensor:
    """One coefficient per task that is closest to those of the tensors: c_t minimises sum_p |c_t g_pt - c_pt g_pt|^2.

    Args:
        per_tensor: [P, T] coefficient of each task's gradient for each tensor.
        gram: [P, T, T] inner products of these gradients.

    Returns:
        [T]; 1 for a task without a gradient.
    """
    squares = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    total = squares.sum(dim=0)
    return torch.where(total > 0, (per_tensor * squares).sum(dim=0) / total, 1.0)


def norms(gram: Tensor) -> Tensor:
    """Norms of the tasks' gradients: [G, T, T] -> [G, T]."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def has_gradient(gram: Tensor) -> Tensor:
    """Mask of the tasks with a gradient in each group: [G, T, T] -> [G, T] bool."""
    return gram.diagonal(dim1=-2, dim2=-1) > torch.finfo(torch.float64).tiny


def cosines(gram: Tensor) -> Tensor:
    """Cosines between the tasks' gradients [G, T, T]; for a task without a gradient 0 with others and 1 with itself."""
    present = has_gradient(gram)
    inverse = torch.where(present, norms(gram).reciprocal(), 0.0)
    result = (inverse.unsqueeze(-1) * gram * inverse.unsqueeze(-2)).clamp(-1.0, 1.0)
    result.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return result


def orders(seed: int, step: int, tasks: int) -> Tensor:
    """Other tasks of each task in random order, [T, T - 1] int64; a pure function of its arguments."""
    words = np.random.SeedSequence(seed, spawn_key=(step,)).generate_state(tasks * tasks, np.uint64)
    drawn = torch.from_numpy(np.argsort(words.reshape(tasks, tasks), axis=1, kind="stable"))
    others = drawn != torch.arange(tasks).unsqueeze(1)
    return drawn[others].view(tasks, tasks - 1)
