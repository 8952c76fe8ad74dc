"""Balancing stages: from Gram matrices of the shared tensors to the coefficients of the combined gradient.

Shapes: P shared tensors, T tasks, G groups of tensors that a stage treats as one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dlrm_mtl.balancing.base import Balancer, Granularity, coefficients, cosines, has_gradient, norms


@dataclass(frozen=True)
class TensorInfo:
    """A shared tensor; a whole embedding table is one tensor."""

    name: str
    is_table: bool = False


def membership(tensors: Sequence[TensorInfo], granularity: Granularity) -> tuple[Tensor, int]:
    """Group of each tensor [P] int64, and the number of groups."""
    if granularity == "tensor":
        return torch.arange(len(tensors)), len(tensors)
    if granularity == "global":
        return torch.zeros(len(tensors), dtype=torch.int64), 1
    return torch.tensor([int(tensor.is_table) for tensor in tensors], dtype=torch.int64), 2


@dataclass(frozen=True)
class BalanceReport:
    """Result of a step's balancing; float64 on the CPU."""

    tasks: tuple[str, ...]
    coefficients: Tensor
    """[P, T]: the combined gradient of tensor p is sum_j coefficients[p, j] g_j."""
    cosines: Tensor
    """[T, T], between the tasks' gradients of all shared tensors as one vector; nan for a task without a gradient."""
    norms: Tensor
    """[T], norms of the tasks' gradients of all shared tensors as one vector."""
    combined_norm: float
    """Norm of the combined gradient of all shared tensors."""
    mean_coefficients: Tensor
    """[T], mean over the tensors for which the task has a gradient; nan for a task without any gradient."""
    conflicting_pairs: float
    """Fraction with a negative inner product among all pairs of tasks that both have a gradient for a tensor, over all
    tensors; 0 if there is no such pair."""

    @property
    def figures(self) -> dict[str, float]:
        """Scalars for a log, by name; nan for an undefined one."""
        result = {"conflict_share": self.conflicting_pairs, "combined_norm": self.combined_norm}
        for i, task in enumerate(self.tasks):
            result[f"norm/{task}"] = self.norms[i].item()
            result[f"coefficient/{task}"] = self.mean_coefficients[i].item()
            for j, other in enumerate(self.tasks[:i]):
                result[f"cosine/{other}~{task}"] = self.cosines[i, j].item()
        return result


class Balancing(nn.Module):
    """The stages of a run's balancing, in the order in which they are applied.

    Between stages a tensor's Gram matrix K becomes M K M^T. A stage gets the sum of these over the members of each group,
    and its result holds for all members. A single task is left unchanged. All state is in buffers.

    Args:
        stages: balancers with the granularity of each, built for the number of groups of :func:`membership`.
        tasks: names of the T tasks.
        tensors: the P shared tensors, in the order of the Gram matrices to come.
    """

    def __init__(
        self, stages: Sequence[tuple[Balancer, Granularity]], tasks: Sequence[str], tensors: Sequence[TensorInfo]
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.tensors = tuple(tensors)
        self.stages = nn.ModuleList(balancer for balancer, _ in stages)
        self._members = [membership(tensors, granularity) for _, granularity in stages]

    @property
    def needs_losses_after(self) -> bool:
        """True if :meth:`after` must be called after every applied update."""
        return any(stage.needs_losses_after for stage in self._balancers())

    @torch.no_grad()
    def step(self, gram: Tensor, losses: Tensor, step: int) -> BalanceReport:
        """Apply the stages to one step's Gram matrices.

        Args:
            gram: [P, T, T], finite (see :func:`dlrm_mtl.core.gram.not_finite_tasks`), the same on all processes.
            losses: [T], the tasks' losses on the global batch; 0 for a task without a row in it.
            step: number of the step.
        """
        gram = gram.detach().to("cpu", torch.float64)
        losses = losses.detach().to("cpu", torch.float64)
        count, tasks = len(self.tensors), len(self.tasks)
        total = torch.eye(tasks, dtype=torch.float64).repeat(count, 1, 1)
        current = gram
        for stage, (members, groups) in zip(self._balancers(), self._members, strict=True):
            if tasks == 1:
                break
            stage.step = step
            grouped = torch.zeros(groups, tasks, tasks, dtype=torch.float64).index_add_(0, members, current)
            matrices = stage.transform(grouped, losses)[members]
            total = matrices @ total
            current = matrices @ current @ matrices.mT
            current = (current + current.mT) / 2
        return self._report(gram, coefficients(total))

    @torch.no_grad()
    def after(self, losses: Tensor) -> None:
        """Pass the losses [T] on the same batch after the update to the stages; only if :attr:`needs_losses_after`."""
        losses = losses.detach().to("cpu", torch.float64)
        for stage in self._balancers():
            if stage.needs_losses_after and len(self.tasks) > 1:
                stage.after(losses)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Stay on the CPU and in float64 when the surrounding model is moved or converted."""
        return self

    def _balancers(self) -> list[Balancer]:
        return [stage for stage in self.stages if isinstance(stage, Balancer)]

    def _report(self, gram: Tensor, combined: Tensor) -> BalanceReport:
        total = gram.sum(dim=0)
        present = has_gradient(gram)
        both = (present.unsqueeze(1) & present.unsqueeze(2)).triu(diagonal=1)
        anywhere = has_gradient(total)
        square = torch.einsum("pi,pij,pj->", combined, gram, combined)
        return BalanceReport(
            tasks=self.tasks,
            coefficients=combined,
            cosines=torch.where(anywhere.unsqueeze(0) & anywhere.unsqueeze(1), cosines(total), torch.nan),
            norms=norms(total),
            combined_norm=float(square.clamp(min=0).sqrt()),
            mean_coefficients=torch.where(present, combined, 0.0).sum(dim=0) / present.sum(dim=0),
            conflicting_pairs=float(((gram < 0) & both).sum() / both.sum().clamp(min=1)),
        )
