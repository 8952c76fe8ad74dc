"""Scaling of dense features, the first step of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dlrm_mtl.data.spec import DenseStatistics, FeatureSpec
from dlrm_mtl.models.blocks import ParallelBatchNorm, ParallelLayerNorm

DenseNorm = Literal["none", "standardise", "batch", "layer"]
"""`none`: dense features unchanged from the data set; a missing value becomes the mean of the training split.

`standardise`: the mean is subtracted, and the result divided by the standard deviation, both from dataset.yaml; a missing
value becomes 0. Features without statistics there stay unchanged.

`batch`: standardised, then batch normalisation. Its statistics are those of the rows of one process, so the trained model
depends on the number of processes.

`layer`: standardised, then layer normalisation over the features of each row.
"""


class Unstandardise(nn.Module):
    """Inverse of the reader's standardisation: x std + mean, on [B, N]."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: Sequence[FeatureSpec]) -> None:
        super().__init__()
        known = [f.statistics if isinstance(f.statistics, DenseStatistics) else None for f in features]
        self.register_buffer("mean", torch.tensor([s.mean if s else 0.0 for s in known]), persistent=False)
        self.register_buffer("std", torch.tensor([(s.std or 1.0) if s else 1.0 for s in known]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, N] to [B, N]."""
        return x * self.std + self.mean


class _OneNorm(nn.Module):
    """A norm for [B, N], made from one for [B, 1, N]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, N]."""
        out: Tensor = self.norm(x.unsqueeze(1)).squeeze(1)
        return out


def build_dense_norm(name: DenseNorm, features: Sequence[FeatureSpec]) -> nn.Module:
    """First module for the dense features [B, N], which the reader has standardised."""
    if name == "standardise" or not features:
        return nn.Identity()
    if name == "none":
        return Unstandardise(features)
    norm = ParallelLayerNorm(1, len(features)) if name == "layer" else ParallelBatchNorm(1, len(features))
    return _OneNorm(norm)
