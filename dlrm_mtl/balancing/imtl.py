"""IMTL-G: the combination that projects equally onto every task's gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, ReductionConfig, cosines, has_gradient, norms
from dlrm_mtl.core.registry import register

_RANK = 1e-10  # eigenvalues of the cosines below this are 0 within float32's accuracy


class IMTLGConfig(ReductionConfig):
    """The combination with the same projection onto every gradient (Liu et al., ICLR 2021)."""

    name: Literal["imtl_g"] = "imtl_g"


@register("balancer", "imtl_g", config=IMTLGConfig, order=80)
class IMTLG(Balancer):
    """g_i <- a_i g_i such that d = sum_i a_i g_i has the same projection d . g_i / |g_i| for all i, with sum_i a_i = 1.

    Liu et al., "Towards impartial multi-task learning", ICLR 2021. The paper's closed form, with differences from the first
    task's gradient, equals a = N^-1 C^-1 1 / (1 . N^-1 C^-1 1) with the cosines C and the norms N, which treats all tasks
    alike and is computed here. Three cases need care, which public code leaves to a singular inverse or worse:

    - C singular and 1 outside its range: some combination of the unit vectors is 0. Then d = 0 is the solution, by the part
      of 1 that C maps to 0; if 1 is inside the range, it is the shortest solution.
    - With weights of both signs the sum may be 0 or negative, and normalising by it blows d up, or turns it uphill for
      every task. Then the sum of magnitudes is made 1.
    - Tasks without a gradient get weight 0.
    """

    def __init__(self, config: IMTLGConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.config = config

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Diagonal matrices [G, T, T], see :class:`Balancer`."""
        present = has_gradient(gram)
        ones = present.double()
        values, vectors = torch.linalg.eigh(cosines(gram))
        inside = values > _RANK * gram.shape[-1]
        along = (vectors.mT @ ones.unsqueeze(-1)).squeeze(-1)
        solved = (vectors @ torch.where(inside, along / values, 0.0).unsqueeze(-1)).squeeze(-1)
        unreached = (vectors @ torch.where(inside, 0.0, along).unsqueeze(-1)).squeeze(-1)
        opposed = unreached.norm(dim=-1, keepdim=True) > 1e-4 * ones.norm(dim=-1, keepdim=True)
        weights = torch.where(opposed, unreached, solved)
        size = norms(gram)
        shortest = torch.where(present, size, torch.inf).amin(dim=-1, keepdim=True)
        weights = torch.where(present, weights * shortest / size, 0.0)
        total, magnitude = weights.sum(dim=-1, keepdim=True), weights.abs().sum(dim=-1, keepdim=True)
        divisor = torch.where(total > 1e-3 * magnitude, total, magnitude)
        weights = torch.where(present, weights / divisor, 0.0)
        return torch.diag_embed(weights * (present.sum(dim=-1, keepdim=True) if self.config.reduction == "sum" else 1))
