"""Sums of a model's input, which show where two computations of it differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 1000
"""Number of golden rows, if the split has as many."""
Sums = dict[str, tuple[float, float]]
"""Two sums of every part of the input, by its name."""


def input_sums(
    features: Tensor, widths: Sequence[int], names: Sequence[str], dense: Tensor, dense_names: Sequence[str]
) -> Sums:
    """Two sums of every part of the input, by its name.

    Args:
        features: [N, W] vectors, see :class:`~dlrm_mtl.models.feature_lookup.FeatureLookup`.
        widths: widths of the parts.
        names: names of the parts.
        dense: [N, D].
        dense_names: D names.
    """
    parts = [*zip(names, features.split(list(widths), dim=1), strict=True)]
    parts += [*zip(dense_names, (column.unsqueeze(1) for column in dense.unbind(1)), strict=True)]
    return {name: _sums(part.double()) for name, part in parts}


def _sums(part: Tensor) -> tuple[float, float]:
    rows = torch.arange(1, part.shape[0] + 1, dtype=torch.float64).unsqueeze(1)
    columns = torch.arange(1, part.shape[1] + 1, dtype=torch.float64)
    weighted = part * (1.0 + torch.frac(rows * 0.6180339887498949) + torch.frac(columns * 0.4142135623730951))
    return float(weighted.sum()), float(weighted.abs().sum())
