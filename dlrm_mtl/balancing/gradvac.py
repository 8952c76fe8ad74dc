"""GradVac: pairs of gradients adjusted to their usual cosine."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, BalancerConfig, has_gradient, norms, orders
from dlrm_mtl.core.registry import register

_LARGEST = 1 - 1e-6
"""Largest absolute value of a target cosine: at 1 the step towards g_j would be infinite."""


class GradVacConfig(BalancerConfig):
    """Gradients less alike than they usually are get a share of each other (Wang et al., ICLR 2021)."""

    name: Literal["gradvac"] = "gradvac"
    beta: float = Field(default=0.01, gt=0, le=1)
    """Weight of the current value in the moving average of a pair's cosine."""


@register("balancer", "gradvac", config=GradVacConfig, order=50)
class GradVac(Balancer):
    r"""Where the cosine c of g'_i and g_j is below its moving average a, g_j is added until it is a.

    g'_i <- g'_i + |g'_i| (a sqrt(1 - c^2) - c sqrt(1 - a^2)) / (|g_j| sqrt(1 - a^2)) g_j, then a <- (1 - beta) a + beta c,
    for each i and each j != i in random order; a starts from 0, with which this is PCGrad's projection. Wang, Tsvetkov,
    Firat and Cao, "Gradient vaccine", ICLR 2021, which has beta = 0.01. LibMTL moves the average only where c < a, so that
    it can only fall, and has beta = 0.5. A pair without a gradient is skipped.
    """

    moving_cosines: Tensor

    def __init__(self, config: GradVacConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("moving_cosines", torch.zeros(groups, len(tasks), len(tasks), dtype=torch.float64))

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Matrices [G, T, T], see :class:`Balancer`; all groups visit the tasks in the same order."""
        groups, tasks, _ = gram.shape
        size, present = norms(gram), has_gradient(gram)
        every = torch.arange(tasks)
        matrices = torch.eye(tasks, dtype=gram.dtype).repeat(groups, 1, 1)
        for other in orders(self.config.seed, self.step, tasks).T:  # [T]: the task that each task meets now
            own = (matrices @ gram * matrices).sum(dim=2).clamp(min=0).sqrt()  # |g'_i|
            inner = (matrices * gram[:, other]).sum(dim=2)
            against = size[:, other]
            usable = present & present[:, other] & (own > 0)
            cosine = torch.where(usable, inner / (own * against), 0.0).clamp(-1, 1)
            wanted = self.moving_cosines[:, every, other]
            aim = wanted.clamp(-_LARGEST, _LARGEST)
            sine, aim_sine = (1 - cosine**2).sqrt(), (1 - aim**2).sqrt()
            share = own * (aim * sine - cosine * aim_sine) / (against * aim_sine)
            matrices[:, every, other] += torch.where(usable & (cosine < aim), share, 0.0)
            moved = torch.lerp(wanted, cosine, self.config.beta)
            self.moving_cosines[:, every, other] = torch.where(usable, moved, wanted)
        return matrices
