"""FAMO: weights that let all losses fall at the same rate, from the losses alone."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.balancing.adam import SmallAdam
from dlrm_mtl.balancing.base import Balancer, ReductionConfig
from dlrm_mtl.core.registry import register


class FAMOConfig(ReductionConfig):
    """All losses are to fall at the same rate, judged by the losses alone (Liu et al., NeurIPS 2023)."""

    name: Literal["famo"] = "famo"
    learning_rate: float = Field(default=0.025, gt=0)
    """Learning rate of the logits."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay that pulls the logits to 0, that is, to equal weights."""


@register("balancer", "famo", config=FAMOConfig, order=120)
class FAMO(Balancer):
    """g_i <- c (z_i / L_i) g_i with z = softmax(logits) and c = 1 / sum_i (z_i / L_i), so that the weights have sum 1.

    Liu, Feng, Stone and Liu, "FAMO: Fast adaptive multitask optimization", NeurIPS 2023. After the update the logits follow
    J . (log L_before - log L_after) for the same batch, J the derivative of the softmax: a task whose loss fell less than
    others' gains weight. They move by Adam with the decay added to the gradient, as in the authors' code; the paper's
    algorithm has plain steps. It needs no inner product, but one more forward pass. Losses are assumed to be at least 0
    (the code's ``min_losses``, always 0 in its experiments).

    A task whose loss is not positive, such as one without a row in the batch, gets weight 0 and does not move the logits.
    """

    needs_losses_after = True
    logits: Tensor
    losses_before: Tensor

    def __init__(self, config: FAMOConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.config = config
        self.adam = SmallAdam((len(tasks),), config.learning_rate)
        self.register_buffer("logits", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("losses_before", torch.zeros(len(tasks), dtype=torch.float64))

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Diagonal matrices [G, T, T], the same for all groups, see :class:`Balancer`."""
        self.losses_before.copy_(losses)
        positive = losses > 0
        weights = torch.where(positive, torch.softmax(self.logits, dim=0) / losses, 0.0)
        weights = weights / weights.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return torch.diag_embed(weights * self.config.factor(int(positive.sum()))).repeat(len(gram), 1, 1)

    def after(self, losses: Tensor) -> None:
        """Move the logits; nothing happens if a loss is not finite."""
        if not bool(torch.isfinite(losses).all()):
            return
        usable = (losses > 0) & (self.losses_before > 0)
        change = torch.where(usable, self.losses_before.log() - losses.log(), 0.0)
        shares = torch.softmax(torch.where(usable, self.logits, -torch.inf), dim=0) if usable.any() else change
        gradient = shares * (change - (shares * change).sum())
        gradient = gradient + self.config.weight_decay * self.logits
        self.logits.copy_(self.adam.update(self.logits, gradient))
