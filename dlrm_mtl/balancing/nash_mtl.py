"""Nash-MTL: a bargain between the tasks for the direction of the update."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, BalancerConfig, cosines, has_gradient, norms
from dlrm_mtl.core.registry import register

_RIDGE = 1e-10
"""Number added to the diagonal of the cosines. Gradients with a positive combination that is 0 have no bargaining solution;
with this their weights grow to 1e5 at most. Otherwise it changes weights by a fraction of about 1e-10."""


class NashMTLConfig(BalancerConfig):
    """The Nash bargaining solution between the tasks (Navon et al., ICML 2022)."""

    name: Literal["nash_mtl"] = "nash_mtl"
    normalize: bool = True
    """Divide the Gram matrix by its Frobenius norm, as in the authors' code: the update then has the size of the gradients.
    Without, its norm is sqrt(T) at every step."""


@register("balancer", "nash_mtl", config=NashMTLConfig, order=100)
class NashMTL(Balancer):
    """g_i <- a_i g_i with the positive a that satisfies K a = 1 / a.

    Navon et al., "Multi-task learning as a bargaining game", ICML 2022. The equation is where the gradient of the convex
    function a . K a / 2 - sum_i log a_i is 0. With unit gradients it keeps its form, and is solved to rounding by Newton's
    method; the authors' code solves a sequence of convex programs with CVXPY and ECOS until the residual is below 1e-3, at
    most 20 of them, and falls back to the last weights. It also clips the combined gradient to norm 1, which the trainer
    does here. Tasks without a gradient get weight 0.
    """

    def __init__(self, config: NashMTLConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.config = config

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Diagonal matrices [G, T, T], see :class:`Balancer`."""
        present = has_gradient(gram)
        weights = torch.where(present, bargain(cosines(gram)) / norms(gram), 0.0)
        if self.config.normalize:
            weights = weights * torch.linalg.matrix_norm(gram).sqrt().unsqueeze(-1)
        return torch.diag_embed(weights)


def bargain(cosine: Tensor) -> Tensor:
    """Positive b [G, T] with C b = 1 / b, for positive semidefinite matrices C [G, T, T] with unit diagonal.

    Newton's method with steps damped according to self-concordance, which keeps b positive and converges from anywhere.
    """
    tasks = cosine.shape[-1]
    cosine = cosine + _RIDGE * torch.eye(tasks, dtype=cosine.dtype)
    b = torch.full(cosine.shape[:-1], tasks**-0.5, dtype=cosine.dtype)
    for _ in range(500):
        gradient = (cosine @ b.unsqueeze(-1)).squeeze(-1) - 1 / b
        # In units of b: the Hessian's diagonal is at least 1 for large and small weights.
        hessian = b.unsqueeze(-1) * cosine * b.unsqueeze(-2) + torch.eye(tasks, dtype=cosine.dtype)
        step = torch.linalg.solve(hessian, b * gradient)
        decrement = (step * b * gradient).sum(dim=-1, keepdim=True).clamp(min=0).sqrt()
        b = b * (1 - step / torch.where(decrement > 0.25, 1 + decrement, 1.0))
        if (decrement < 1e-8).all():
            break
    return b
