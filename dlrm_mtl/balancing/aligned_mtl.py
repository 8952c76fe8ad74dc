"""Aligned-MTL: gradients made orthogonal and equally long, with the smallest change."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, BalancerConfig
from dlrm_mtl.core.registry import register

_RANK = 1e-12
"""Fraction of the largest eigenvalue below which an eigenvalue counts as 0. Float32 sums, known to 1e-6 of their length,
produce such eigenvalues."""


class AlignedMTLConfig(BalancerConfig):
    """The gradients made orthogonal and equally long (Senushkin et al., CVPR 2023)."""

    name: Literal["aligned_mtl"] = "aligned_mtl"
    scale: Literal["min", "median", "mean"] = "min"
    """Common length: the smallest singular value of the matrix of gradients (the paper), or the root of the median or the
    mean of the eigenvalues of its Gram matrix (options of the authors' code)."""


@register("balancer", "aligned_mtl", config=AlignedMTLConfig, order=90)
class AlignedMTL(Balancer):
    """g'_i = sum_j B_ij g_j with B = sqrt(s) K^(-1/2) on the range of K, whose smallest eigenvalue is s.

    Senushkin, Patakin, Kuznetsov and Konushin, "Independent component alignment for multi-task learning", CVPR 2023. All
    singular values of the new matrix of gradients are sqrt(s): its condition number is 1. Eigenvalues up to 1e-12 of the
    largest count as 0. LibMTL drops those below float32's epsilon times T, on inner products in float32, so that rounding
    may set the scale there.
    """

    def __init__(self, config: AlignedMTLConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.config = config

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Symmetric matrices [G, T, T], see :class:`Balancer`; 0 for a group without gradients."""
        values, vectors = torch.linalg.eigh(gram)
        kept = (values > _RANK * values[:, -1:]) & (values > torch.finfo(gram.dtype).tiny)
        known = torch.where(kept, values, torch.nan)
        if self.config.scale == "min":
            scale = torch.where(kept, values, torch.inf).amin(dim=-1, keepdim=True)
        elif self.config.scale == "median":
            scale = known.nanquantile(0.5, dim=-1, keepdim=True)
        else:
            scale = known.nanmean(dim=-1, keepdim=True)
        root = torch.where(kept, (scale / values).sqrt(), 0.0)
        return (vectors * root.unsqueeze(-2)) @ vectors.mT
