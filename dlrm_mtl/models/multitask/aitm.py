"""AITM: information passed from task to task along a chain such as click, then purchase (Xi et al., KDD 2021).

doi 10.1145/3447548.3467071, arXiv 2105.08489.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.core.registry import register
from dlrm_mtl.models.blocks import MLP, Block, ParallelLinear, ParallelMLP, StackConfig


class AITMConfig(StackConfig):
    """A stack of layers for each task, and information handed from each task to the next, in the order of `tasks`.

    For tasks that can only happen one after the other: click, add to cart, purchase.
    """

    name: Literal["aitm"] = "aitm"
    calibrator: float = Field(default=0.3, ge=0.0)
    """Weight of the penalty on rows whose predicted probability of a task exceeds that of the task before it; 0 for none."""
    transfer: Literal["linear", "layer"] = "linear"
    """Transformation of the passed information: one linear layer, or with `layer` also the norm, activation and dropout of
    the stacks, as in the authors' code."""

    def model_post_init(self, context: object) -> None:
        """Refuse stacks without layers: the transfer needs representations of its own width."""
        super().model_post_init(context)
        if not self.layers:
            raise ValueError("layers [] is empty; aitm needs one layer per task at least.")


@register("architecture", "aitm", config=AITMConfig, order=100)
class AITM(Block):
    """q_t = MLP_t(x), z_1 = q_1, z_t = AIT(G_t z_{t-1}, q_t): equations 2 to 6 of the paper.

    G_t is one linear layer (or, see `transfer`, a full layer). AIT weighs two tokens u, the passed one and the task's own,
    by softmax_u(<K u, Q u> / sqrt(k)) and adds up V u. As in the paper, the product is that of each token with itself, not
    attention of one token to another. K, Q and V (linear, with biases) are shared by all transfers.

    The paper's behavioural expectation calibrator is a term of the loss: :meth:`penalty`.

    Parameters with layers h, k = h[-1] and T tasks: T P(D; h) + (T - 1)(k^2 + k) + 3 (k^2 + k) if T > 1, where P counts a
    stack with biases.
    """

    def __init__(self, config: AITMConfig, in_features: int, tasks: int) -> None:
        super().__init__()
        self.calibrator = config.calibrator
        self.bottoms = ParallelMLP(tasks, in_features, config)
        width = self.bottoms.out_features
        handed = config.model_copy(update={"layers": [width]})
        self.transfers = nn.ModuleList(
            nn.Linear(width, width) if config.transfer == "linear" else MLP(width, handed) for _ in range(tasks - 1)
        )
        self.attention = ParallelLinear(3, width, width) if tasks > 1 else None  # V, K, Q
        self.out_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, T, d]."""
        own: Tensor = self.bottoms(features)
        if self.attention is None:
            return own
        weight, bias = self.attention.weight.flatten(0, 1), self.attention.bias.flatten()
        own_vkq = F.linear(own[:, 1:], weight, bias)  # [B, T - 1, 3 d], all tasks in one product
        states = [own[:, 0]]
        for step, transfer in enumerate(self.transfers):  # a chain: each transfer needs the state before it
            handed_vkq = F.linear(transfer(states[-1]), weight, bias)
            tokens = torch.stack([handed_vkq, own_vkq[:, step]], dim=1)  # [B, 2, 3 d]
            value, key, query = tokens.chunk(3, dim=-1)
            weights = torch.softmax((key * query).sum(-1, keepdim=True) / math.sqrt(self.out_features), dim=1)
            states.append((weights * value).sum(1))
        return torch.stack(states, dim=1)

    def penalty(self, logits: Tensor) -> Tensor | None:
        """Calibrator penalty: ``calibrator`` x sum_t max(p_t - p_{t-1}, 0) for every row, [B], from ``logits`` [B, T].

        Equation 8 of the paper; add the mean over the rows to the loss. None if its weight is 0.
        """
        if self.calibrator == 0.0 or self.attention is None:
            return None
        probabilities = torch.sigmoid(logits)
        return self.calibrator * torch.relu(probabilities[:, 1:] - probabilities[:, :-1]).sum(dim=1)
