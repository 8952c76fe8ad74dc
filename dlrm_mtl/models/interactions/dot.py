"""Products of pairs of features, as in DLRM (Naumov et al., 2019, arXiv 1906.00091)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.models.blocks import Block
from dlrm_mtl.models.interactions.width import one_width


class DotConfig(Strict):
    """Products of all pairs of features, as in DLRM (Naumov et al., 2019, arXiv 1906.00091)."""

    name: Literal["dot"] = "dot"
    keep: Literal["dense", "all"] = "dense"
    """Columns kept in addition to the products: the dense features, as in the paper, or all features."""


@register("interaction", "dot", config=DotConfig)
class Dot(Block):
    """<v_i, v_j> for all pairs i < j of the F vectors: [B, D] -> [B, kept + F (F - 1) / 2], kept columns first.

    The vectors are the pooled features and the dense features, if any, whose layers must end in the same width.
    """

    pairs: Tensor

    def __init__(self, config: DotConfig, fields: Sequence[int], dense: int) -> None:
        super().__init__()
        self.width = one_width("dot", fields)
        if dense not in (0, self.width):
            raise ValueError(
                f"dot multiplies the dense features with pooled ones of width {self.width} and they are {dense} wide; "
                f"let model.dense.layers end in {self.width}."
            )
        vectors = len(fields) + (dense > 0)
        rows, columns = torch.triu_indices(vectors, vectors, offset=1)
        self.register_buffer("pairs", rows * vectors + columns, persistent=False)
        self.kept = dense if config.keep == "dense" else sum(fields) + dense
        self.out_features = self.kept + len(self.pairs)
        if self.out_features == 0:
            raise ValueError("dot needs two features or more; add features, or set keep to all.")

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, D']."""
        vectors = features.unflatten(1, (-1, self.width))  # [B, F, d]
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return torch.cat([features[:, features.shape[1] - self.kept :], products.index_select(1, self.pairs)], dim=1)
