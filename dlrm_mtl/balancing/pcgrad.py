"""PCGrad: every task's gradient projected off the gradients that it conflicts with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, ReductionConfig, orders
from dlrm_mtl.core.registry import register


class PCGradConfig(ReductionConfig):
    """Every task's gradient loses the parts that point against the others' (Yu et al., NeurIPS 2020)."""

    name: Literal["pcgrad"] = "pcgrad"


@register("balancer", "pcgrad", config=PCGradConfig, order=40)
class PCGrad(Balancer):
    """For each i and each j != i in random order: g'_i <- g'_i - (g'_i . g_j / |g_j|^2) g_j if g'_i . g_j < 0.

    Yu, Kumar, Gupta, Levine, Hausman and Finn, "Gradient surgery for multi-task learning", NeurIPS 2020; g'_i starts as
    g_i, g_j is always the original gradient, and the update is the sum over i, as in the paper. Public code differs in
    several ways: it visits j = i too, which for three tasks and more makes projections that the paper does not
    (WeiChengTseng/Pytorch-PCGrad, LibMTL, the authors' TensorFlow code); it does not shuffle (the latter); it treats heads
    as a part of the vectors, or averages although it claims to sum (the first).
    """

    def __init__(self, config: PCGradConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.seed = config.seed
        self.factor = config.factor(len(tasks)) / len(tasks)

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Matrices [G, T, T], see :class:`Balancer`; all groups visit the tasks in the same order."""
        return self.factor * project(gram, orders(self.seed, self.step, gram.shape[-1]))


def project(gram: Tensor, order: Tensor) -> Tensor:
    """Project every gradient off the gradients that it conflicts with.

    Args:
        gram: [G, T, T].
        order: [T, T - 1] int64, the other tasks of each task, in the order of visits.

    Returns:
        [G, T, T], the projected gradients in terms of the original ones.
    """
    groups, tasks, _ = gram.shape
    square = gram.diagonal(dim1=1, dim2=2)
    every = torch.arange(tasks)
    matrices = torch.eye(tasks, dtype=gram.dtype).repeat(groups, 1, 1)
    for other in order.T:  # [T]: the task that each task meets now
        inner = (matrices * gram[:, other]).sum(dim=2)  # g'_i . g_other(i)
        against = square[:, other]
        matrices[:, every, other] -= torch.where((inner < 0) & (against > 0), inner / against, 0.0)
    return matrices
