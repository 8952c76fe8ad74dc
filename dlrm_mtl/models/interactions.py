"""Interactions: from pooled features and dense features to the input of the multitask architecture.

Features [B, D] hold the pooled features side by side, in widths that ``fields`` gives, and then the dense features, ``dense``
columns (after the layers they may have passed), or none.

A new interaction is one class with its configuration here, and one line in each of the two tables at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet

from dlrm_mtl.core.schema import Strict
from dlrm_mtl.models.blocks import Block


class ConcatConfig(Strict):
    """The features side by side, as they are."""

    name: Literal["concat"] = "concat"


class DCNv2Config(Strict):
    """Cross layers of DCN-V2 (Wang et al., WWW 2021): every layer multiplies with the input once more."""

    name: Literal["dcnv2"] = "dcnv2"
    layers: int = Field(default=2, gt=0)
    """Number of cross layers."""
    rank: int | None = Field(default=None, gt=0)
    """Rank of each layer's matrix; default: full."""


class DotConfig(Strict):
    """Products of all pairs of features, as in DLRM (Naumov et al., 2019, arXiv 1906.00091)."""

    name: Literal["dot"] = "dot"
    keep: Literal["dense", "all"] = "dense"
    """What stands beside the products: the dense features, as in the paper, or all features."""


class FMConfig(Strict):
    """All features, and beside them the pairwise term of a factorisation machine, as in DeepFM (Guo et al., IJCAI 2017)."""

    name: Literal["fm"] = "fm"
    pooling: Literal["sum", "none"] = "sum"
    """`sum`: one number, as in DeepFM. `none`: one number per dimension, the bi-interaction of He & Chua (SIGIR 2017)."""


class Concat(Block):
    """[B, D] -> [B, D], unchanged."""

    def __init__(self, config: ConcatConfig, fields: Sequence[int], dense: int) -> None:
        super().__init__()
        self.out_features = sum(fields) + dense

    def forward(self, features: Tensor) -> Tensor:
        """Return ``features`` [B, D]."""
        return features


class DCNv2(Block):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, the stacked structure of the paper: [B, D] -> [B, D]."""

    def __init__(self, config: DCNv2Config, fields: Sequence[int], dense: int) -> None:
        super().__init__()
        in_features = sum(fields) + dense
        if config.rank is None:
            self.cross: nn.Module = CrossNet(in_features, config.layers)
        else:
            self.cross = LowRankCrossNet(in_features, config.layers, config.rank)
        self.out_features = in_features

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, D]."""
        crossed: Tensor = self.cross(features)
        return crossed


class Dot(Block):
    """<v_i, v_j> for all pairs i < j of the F vectors: [B, D] -> [B, kept + F (F - 1) / 2], kept columns first.

    The vectors are the pooled features and, where there are any, the dense features, whose layers must end in the same width.
    """

    pairs: Tensor

    def __init__(self, config: DotConfig, fields: Sequence[int], dense: int) -> None:
        super().__init__()
        self.width = _one_width("dot", fields)
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


class FM(Block):
    """sum_{i<j} v_i * v_j = ((sum_i v_i)^2 - sum_i v_i^2) / 2 beside the features: [B, D] -> [B, D + 1] or [B, D + d].

    The layers that follow are the deep part of DeepFM, and see its linear term through the features. The vectors are the
    pooled features, and the dense ones if they have the same width. (``torchrec.modules.deepfm.FactorizationMachine`` also
    multiplies different dimensions of the vectors, which is not the paper's equation.)
    """

    def __init__(self, config: FMConfig, fields: Sequence[int], dense: int) -> None:
        super().__init__()
        self.width = _one_width("fm", fields)
        self.crossed = sum(fields) + (dense if dense == self.width else 0)
        self.sum = config.pooling == "sum"
        self.out_features = sum(fields) + dense + (1 if self.sum else self.width)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` [B, D] to [B, D']."""
        vectors = features[:, : self.crossed].unflatten(1, (-1, self.width))  # [B, F, d]
        crossed = (vectors.sum(1).square() - vectors.square().sum(1)) / 2
        return torch.cat([features, crossed.sum(1, keepdim=True) if self.sum else crossed], dim=1)


def _one_width(name: str, fields: Sequence[int]) -> int:
    if len(set(fields)) != 1:
        found = ", ".join(map(str, sorted(set(fields)))) or "none"
        raise ValueError(f"{name} needs pooled features of one width and finds {found}; give all tables one dim.")
    return fields[0]


InteractionConfig = Annotated[ConcatConfig | DCNv2Config | DotConfig | FMConfig, Field(discriminator="name")]

_MODULES: dict[type, Callable[..., Block]] = {
    ConcatConfig: Concat,
    DCNv2Config: DCNv2,
    DotConfig: Dot,
    FMConfig: FM,
}


def build_interaction(config: InteractionConfig, fields: Sequence[int], dense: int = 0) -> Block:
    """The interaction that ``config`` names, for pooled features of widths ``fields`` and ``dense`` columns after them.

    Raises:
        ValueError: the widths do not fit the interaction.
    """
    return _MODULES[type(config)](config, fields, dense)
