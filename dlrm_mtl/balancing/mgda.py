"""MGDA: the shortest weighted mean of the gradients."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, ReductionConfig, has_gradient, norms
from dlrm_mtl.balancing.simplex import min_norm_weights
from dlrm_mtl.core.registry import register


class MGDAConfig(ReductionConfig):
    """The shortest weighted mean of the gradients, which no task objects to (Sener and Koltun, NeurIPS 2018)."""

    name: Literal["mgda"] = "mgda"
    normalization: Literal["none", "norm", "loss", "loss+"] = "none"
    """Divisor of gradients in the search for weights: none (the paper), their norms, the losses, or both."""


@register("balancer", "mgda", config=MGDAConfig, order=70)
class MGDA(Balancer):
    """g_i <- w_i g_i with w = argmin |sum_i w_i g_i|^2 over weights that are at least 0 and have sum 1.

    Désidéri, 2012; Sener and Koltun, "Multi-task learning as multi-objective optimization", NeurIPS 2018. The weights are
    exact (Wolfe's algorithm); the authors' Frank-Wolfe iteration stops after 250 steps or at a change of 1e-5. As in their
    code, weights found for normalised gradients are applied to the original gradients.

    Only tasks with a gradient get weights. Otherwise a task without one would take all the weight, and shared parameters
    would not change in any batch that lacks rows for some task.
    """

    def __init__(self, config: MGDAConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.config = config

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Diagonal matrices [G, T, T], see :class:`Balancer`."""
        present = has_gradient(gram)
        divisor = torch.ones_like(present, dtype=gram.dtype)
        if self.config.normalization in ("norm", "loss+"):
            divisor = divisor * norms(gram)
        if self.config.normalization in ("loss", "loss+"):
            divisor = divisor * losses
        divisor = torch.where(divisor > 0, divisor, 1.0)
        scaled = gram / (divisor.unsqueeze(-1) * divisor.unsqueeze(-2))
        weights = torch.zeros_like(divisor)
        for group, some in enumerate(present):
            index = some.nonzero().squeeze(1)
            if len(index):
                found = min_norm_weights(scaled[group][index.unsqueeze(1), index].numpy())
                weights[group, index] = self.config.factor(len(index)) * torch.from_numpy(found)
        return torch.diag_embed(weights)
