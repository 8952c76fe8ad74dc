"""Auxiliary gradients that conflict with the target's: projected off it, or dropped."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, TargetConfig, cosines, has_gradient
from dlrm_mtl.core.registry import register


class SurgeryConfig(TargetConfig):
    """Auxiliaries that conflict with the target lose the part that points against it (Lee, Texas A&M, 2023)."""

    name: Literal["surgery"] = "surgery"


@register("balancer", "surgery", config=SurgeryConfig, order=20)
class Surgery(Balancer):
    """g_i <- g_i - (g_i . g_target / |g_target|^2) g_target where g_i . g_target < 0; the target keeps its gradient.

    The adjusted gradient surgery of R. Lee, "Exploring Optimizations in Multi-task Recommendation via Manipulating
    Auxiliary Gradients", Texas A&M University, 2023: PCGrad's projection (Yu et al., NeurIPS 2020), only of auxiliaries off
    the target. No auxiliary has a negative inner product with the target afterwards. The thesis does not say over which
    parameters inner products are taken; ``global`` is the default here.
    """

    def __init__(self, config: SurgeryConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.target = tasks.index(config.target)

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The identity minus a multiple of the target's column, [G, T, T], see :class:`Balancer`."""
        inner = gram[:, :, self.target]  # [G, T]
        conflict = (inner < 0) & has_gradient(gram)[:, self.target, None]
        share = torch.where(conflict, inner / inner[:, self.target, None], 0.0)
        matrices = torch.eye(gram.shape[-1], dtype=gram.dtype).repeat(len(gram), 1, 1)
        matrices[:, :, self.target] -= share
        return matrices


class SimilarityConfig(TargetConfig):
    """Auxiliaries that conflict with the target are left out (Du et al., 2018)."""

    name: Literal["similarity"] = "similarity"
    weighted: bool = False
    """True to weight auxiliaries without conflict by their cosine with the target; false for full weight."""


@register("balancer", "similarity", config=SimilarityConfig, order=30)
class Similarity(Balancer):
    """g_i <- 0 where the cosine of g_i and g_target is negative; with ``weighted``, g_i <- max(0, cos) g_i.

    Du et al., "Adapting auxiliary losses using gradient similarity", arXiv 1812.02224: the unweighted and the weighted
    version. Without a gradient of the target there is no conflict: auxiliaries stay unchanged.
    """

    def __init__(self, config: SimilarityConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.weighted = config.weighted
        self.target = tasks.index(config.target)

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Diagonal matrices [G, T, T], see :class:`Balancer`."""
        cosine = cosines(gram)[:, :, self.target]  # [G, T]
        factor = cosine.clamp(min=0) if self.weighted else (cosine >= 0).double()
        present = has_gradient(gram)
        return torch.diag_embed(torch.where(present & present[:, self.target, None], factor, 1.0))
