"""The point of least norm among the weighted means of a few vectors, given their inner products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
_SMALLEST = 1e-20  # squared norms below this fraction of the largest are rounding


def min_norm_weights(gram: Array, start: Array | None = None) -> Array:
    """The weights w [T], at least 0 with sum 1, of the vector of least norm sum_i w_i g_i.

    Wolfe's algorithm ("Finding the nearest point in a polytope", 1976): vectors enter one by one, the least norm over the
    affine hull of the entered ones is found exactly, and vectors whose weight would be negative leave. It ends after
    finitely many steps at the exact point, up to rounding; Frank and Wolfe's algorithm only approaches it.

    Args:
        gram: [T, T], inner products of the vectors.
        start: weights to begin from, such as those of a similar problem.
    """
    tasks = len(gram)
    square = np.maximum(np.diagonal(gram), _SMALLEST * np.diagonal(gram).max(initial=0.0))
    weights = np.zeros(tasks)
    weights[int(np.argmin(square))] = 1.0
    if square.min() <= 0:
        return weights
    size = np.sqrt(square)
    cosine = gram / np.outer(size, size)
    if start is not None:
        weights = _reduce(cosine, size, start, list(np.flatnonzero(start > 0)))
    for _ in range(100 * tasks):
        inner = gram @ weights
        value = weights @ inner
        gain = value - inner - 8 * tasks * _EPS * size * (size @ weights)
        gain[weights > 0] = -np.inf
        entering = int(np.argmax(gain))
        if gain[entering] <= 0:
            break
        trial = _reduce(cosine, size, weights, [*np.flatnonzero(weights > 0), entering])
        if not trial @ gram @ trial < value:
            break
        weights = trial
    return weights


def _reduce(cosine: Array, size: Array, weights: Array, support: list[int]) -> Array:
    """Wolfe's minor cycle: from ``weights`` towards the least norm over ``support``, dropping weights that reach 0."""
    while True:
        aim = np.zeros_like(weights)
        aim[support] = _affine_weights(cosine[np.ix_(support, support)], size[support])
        falling = [task for task in support if aim[task] <= 0]
        if not falling:
            return aim
        steps = [weights[task] / (weights[task] - aim[task]) if weights[task] > 0 else 0.0 for task in falling]
        first = int(np.argmin(steps))
        weights = weights + steps[first] * (aim - weights)
        support.remove(falling[first])
        outside = np.ones(len(weights), dtype=bool)
        outside[support] = False
        weights[outside] = 0.0


def _affine_weights(cosine: Array, size: Array) -> Array:
    """Weights with sum 1, of any sign, of the vector of least norm; solved for unit vectors, which is well scaled."""
    count = len(size)
    inverse = size.min() / size
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = cosine
    system[:count, count] = system[count, :count] = inverse
    right = np.zeros(count + 1)
    right[count] = 1.0
    solution = np.linalg.lstsq(system, right, rcond=None)[0][:count] * inverse
    return solution / solution.sum()
