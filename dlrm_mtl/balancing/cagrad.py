"""CAGrad: the direction near the mean gradient that is best for the worst-served task."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.balancing.base import Balancer, ReductionConfig, has_gradient
from dlrm_mtl.balancing.simplex import Array, min_norm_weights
from dlrm_mtl.core.registry import register

_SHORTEST = 1e-4
"""Fraction of the shortest gradient below which g_w counts as 0: the tasks oppose each other entirely."""


class CAGradConfig(ReductionConfig):
    """Near the mean gradient, the direction that serves the worst-served task best (Liu et al., NeurIPS 2021)."""

    name: Literal["cagrad"] = "cagrad"
    c: float = Field(default=0.5, ge=0, lt=1)
    """Largest distance of the direction from the mean gradient g_0, as a fraction of |g_0|; 0 is the mean itself."""
    rescale: Literal["none", "square", "linear"] = "square"
    """Divisor of the direction: 1, 1 + c^2 or 1 + c (0, 1 and 2 in the authors' code, whose default is 1 + c^2)."""


@register("balancer", "cagrad", config=CAGradConfig, order=60)
class CAGrad(Balancer):
    """d = argmax of min_i g_i . d over |d - g_0| <= c |g_0|, with g_0 the mean gradient; g_i <- (its coefficient in d) g_i.

    Liu, Liu, Jin, Stone and Liu, "Conflict-averse gradient descent for multi-task learning", NeurIPS 2021. The dual: d = g_0
    + (c |g_0| / |g_w|) g_w, where g_w = sum_i w_i g_i minimises g_w . g_0 + c |g_0| |g_w| over weights w that are at least 0
    and have sum 1. It is solved exactly, see :func:`conflict_averse`; public code calls SciPy's SLSQP on float32 inner
    products with 1e-8 under roots, to its default tolerance of 1e-6. ``reduction: sum`` multiplies d by the number of tasks,
    as the authors' training code does.

    Tasks without a gradient are excluded from the mean and the weights. A single task keeps its gradient.
    """

    def __init__(self, config: CAGradConfig, tasks: list[str], groups: int) -> None:
        super().__init__()
        self.config = config
        self.divisor = {"none": 1.0, "square": 1 + config.c**2, "linear": 1 + config.c}[config.rescale]

    def transform(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Diagonal matrices [G, T, T], see :class:`Balancer`."""
        present = has_gradient(gram)
        tasks = gram.shape[-1]
        result = torch.zeros(len(gram), tasks, dtype=gram.dtype)
        for group, some in enumerate(present):
            index = some.nonzero().squeeze(1)
            if len(index) == 1:
                # A single task with a gradient counts as in the sum, or in the mean over tasks with a gradient.
                result[group, index] = self.config.factor(1)
            elif len(index):
                found = conflict_averse(gram[group][index.unsqueeze(1), index].numpy(), self.config.c) / self.divisor
                result[group, index] = self.config.factor(len(index)) * torch.from_numpy(found)
        return torch.diag_embed(result)


def conflict_averse(gram: Array, c: float) -> Array:
    """Coefficients [T] of CAGrad's direction d, before rescaling.

    With t = |g_w| / (c |g_0|) the optimal g_w + t g_0 is the vector of least norm among the weighted means of g_i + t g_0,
    and d = (g_w + t g_0) / t. For a given t that is solved exactly, and t - |g_w(t)| / (c |g_0|) goes from negative to
    positive once. If g_w = 0 is optimal, d is not unique. The result is then (to 1e-4) g_0 projected onto the directions
    that harm no task, the limit for t -> 0.

    Args:
        gram: [T, T], inner products of the gradients, none of which is 0.
        c: as in :class:`CAGradConfig`.
    """
    tasks = len(gram)
    gram = gram / np.diagonal(gram).max()
    size = np.sqrt(np.diagonal(gram))
    with_mean = gram.mean(axis=1)  # g_i . g_0
    radius = c * math.sqrt(max(float(with_mean.mean()), 0.0))
    if radius <= 1e-8 * size.max():
        return np.full(tasks, 1 / tasks)

    def weights_at(t: float, start: Array | None = None) -> Array:
        shifted = gram + t * (with_mean[:, None] + with_mean[None, :]) + t * t * with_mean.mean()
        return min_norm_weights(shifted, start)

    def excess(t: float, weights: Array) -> float:
        return t * radius - math.sqrt(max(float(weights @ gram @ weights), 0.0))

    low, high = _SHORTEST * size.min() / radius, 1.01 * size.max() / radius
    weights = weights_at(low)
    below = excess(low, weights)
    t = low
    if below < 0:
        above, side = excess(high, weights_at(high, weights)), 0
        for _ in range(200):  # Illinois: false position that halves a bound kept twice
            t = (low * above - high * below) / (above - below)
            if not low < t < high:
                break
            weights = weights_at(t, weights)
            value = excess(t, weights)
            if abs(value) <= 1e-15 * t * radius or high - low <= 1e-15 * high:
                break
            if value < 0:
                low, below = t, value
                above = above / 2 if side < 0 else above
                side = -1
            else:
                high, above = t, value
                below = below / 2 if side > 0 else below
                side = 1
    return 1 / tasks + weights / t
