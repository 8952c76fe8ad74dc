"""GradNorm: gradient sizes that let all tasks learn at the same rate."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.balancing.adam import SmallAdam
from dlrm_mtl.balancing.base import Balancer, BalancerConfig, norms
from dlrm_mtl.core.registry import register

_SMALLEST = 1e-3
"""Smallest weight. The paper has no bound, and Adam's steps would make a small weight negative."""


class GradNormConfig(BalancerConfig):
    """Learned weights that give slow tasks larger gradients (Chen et al., ICML 2018)."""

    name: Literal["gradnorm"] = "gradnorm"
    alpha: float = Field(default=1.5, ge=0)
    """Strength of the help for slow tasks; 0 makes all norms equal."""
    learning_rate: float = Field(default=0.025, gt=0)
    """Learning rate of the weights, under Adam."""


@register("balancer", "gradnorm", config=GradNormConfig, order=110)
class GradNorm(Balancer):
    """g_i <- w_i g_i; then w descends sum_i | w_i |g_i| - mean_j(w_j |g_j|) r_i^alpha |, and is scaled to have sum T.

    Chen, Badrinarayanan, Lee and Rabinovich, ICML 2018. r_i = l_i / mean_j l_j with l_i = L_i / L_i(first step) is task i's
    inverse rate of training. The mean and r are constants for the descent, so the derivative by w_i is |g_i| times the sign
    of the i-th difference, in closed form. The paper uses the gradients of the last shared layer and keeps w in the
    trainer's optimizer; here all shared parameters count, and w moves by Adam. torch-rechub leaves r_i^alpha out, so that
    all tasks chase the same norm; LibMTL learns a softmax's logits.

    Tasks without a gradient or a positive loss are ignored in that step.
    """

    weights: Tensor
    first_losses: Tensor

    def __init__(self, config: GradNormConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.config = config
        self.adam = SmallAdam((groups, len(tasks)), config.learning_rate)
        self.register_buffer("weights", torch.ones(groups, len(tasks), dtype=torch.float64))
        self.register_buffer("first_losses", torch.zeros(len(tasks), dtype=torch.float64))  # 0 before it is known

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Diagonal matrices [G, T, T] of the weights before they move, see :class:`Balancer`."""
        result = torch.diag_embed(self.weights)
        self.first_losses.copy_(torch.where((self.first_losses == 0) & (losses > 0), losses, self.first_losses))
        size = norms(gram)
        usable = (size > 0) & (losses > 0)
        count = usable.sum(dim=-1, keepdim=True).clamp(min=1)
        remaining = torch.where(usable, losses / self.first_losses, 0.0)
        rate = remaining * count / remaining.sum(dim=-1, keepdim=True)
        weighted = torch.where(usable, self.weights * size, 0.0)
        wanted = weighted.sum(dim=-1, keepdim=True) / count * rate**self.config.alpha
        gradient = torch.where(usable, torch.sign(weighted - wanted) * size, 0.0)
        moved = self.adam.update(self.weights, gradient).clamp(min=_SMALLEST)
        self.weights.copy_(moved * (moved.shape[-1] / moved.sum(dim=-1, keepdim=True)))
        return result
