"""MetaBalance: auxiliary gradients brought to the size of the target's."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, Granularity, TargetConfig, norms
from dlrm_mtl.core.registry import register


class MetaBalanceConfig(TargetConfig):
    """Auxiliary gradients are brought to the size of the target's (He et al., WWW 2022)."""

    name: Literal["metabalance"] = "metabalance"
    granularity: Granularity = "tensor"
    relax: float = Field(default=0.7, ge=0, le=1)
    """Degree of the adjustment: 0 leaves gradients unchanged, 1 gives every auxiliary the target's norm."""
    beta: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the past in the moving averages of the norms; 0 uses the norms of the step."""
    strategy: Literal["shrink", "enlarge", "both"] = "both"
    """Auxiliaries to adjust: those larger than the target (`shrink`), smaller ones (`enlarge`), or both."""


@register("balancer", "metabalance", config=MetaBalanceConfig, order=10)
class MetaBalance(Balancer):
    """g_i <- r (m_target / m_i) g_i + (1 - r) g_i with moving averages m_i of the norms, for every auxiliary i.

    He, Feng, Cheng, Ji, Guo and Caverlee, WWW 2022. m_i <- beta m_i + (1 - beta) |g_i| starts from 0, as in the authors'
    code, and is divided by 1 - beta^n after n steps. If all tasks have had a gradient at every step, this changes no ratio
    and hence nothing. It prevents a task whose gradient appears later from being enlarged by up to 1 / (1 - beta).

    A task without a gradient at a step keeps its average, and nothing is scaled if the target has never had a gradient; the
    authors' code divides 0 by 0 there. r = 1 and the strategies are the paper's; the code has r < 1 and ``both``.
    """

    moving_norms: Tensor
    counts: Tensor

    def __init__(self, config: MetaBalanceConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.config = config
        self.target = tasks.index(config.target)
        self.register_buffer("moving_norms", torch.zeros(groups, len(tasks), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(groups, len(tasks), dtype=torch.int64))  # steps with a gradient

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Diagonal matrices [G, T, T], see :class:`Balancer`."""
        beta, relax = self.config.beta, self.config.relax
        size = norms(gram)
        present = size > 0
        self.moving_norms.copy_(torch.where(present, torch.lerp(size, self.moving_norms, beta), self.moving_norms))
        self.counts += present
        mean = self.moving_norms / (1 - beta ** self.counts.double()).clamp(min=torch.finfo(torch.float64).tiny)
        ratio = mean[:, self.target, None] / mean
        usable = (mean > 0) & (mean[:, self.target, None] > 0)
        if self.config.strategy == "shrink":
            usable &= ratio < 1
        elif self.config.strategy == "enlarge":
            usable &= ratio > 1
        return torch.diag_embed(torch.where(usable, relax * ratio + (1 - relax), 1.0))
