"""The methods as their papers state them: on vectors, one at a time, without a thought for cost or special cases."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, minimize

Vector = NDArray[np.float64]


def gram_of_vectors(gradients: list[Vector]) -> NDArray[np.float64]:
    return np.array([[np.dot(a, b) for b in gradients] for a in gradients])


def metabalance(steps: list[list[Vector]], target: int, relax: float, beta: float, strategy: str) -> list[Vector]:
    """The adjusted gradients of the last step."""
    moving = [0.0] * len(steps[0])
    for gradients in steps:
        moving = [beta * m + (1 - beta) * math.sqrt(g @ g) for m, g in zip(moving, gradients, strict=True)]
    adjusted = []
    for m, g in zip(moving, steps[-1], strict=True):
        larger = m > moving[target]
        if (strategy == "shrink" and not larger) or (strategy == "enlarge" and larger):
            adjusted.append(g)
        else:
            adjusted.append(g * moving[target] / m * relax + g * (1 - relax))
    return adjusted


def surgery(gradients: list[Vector], target: int) -> list[Vector]:
    toward = gradients[target]
    result = []
    for i, g in enumerate(gradients):
        if i != target and np.dot(g, toward) / np.linalg.norm(g) / np.linalg.norm(toward) < 0:
            g = g - toward * (np.dot(g, toward) / np.linalg.norm(toward) ** 2)
        result.append(g)
    return result


def similarity(gradients: list[Vector], target: int, weighted: bool) -> list[Vector]:
    result = []
    for g in gradients:
        cosine = np.dot(g, gradients[target]) / np.linalg.norm(g) / np.linalg.norm(gradients[target])
        result.append(g * (max(0.0, cosine) if weighted else float(cosine >= 0)))
    return result


def pcgrad(gradients: list[Vector], order: list[list[int]]) -> Vector:
    """The sum of the projected gradients."""
    total = np.zeros_like(gradients[0])
    for i, others in enumerate(order):
        projected = gradients[i].copy()
        for j in others:
            if projected @ gradients[j] < 0:
                projected -= (projected @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        total += projected
    return total


def gradvac(
    gradients: list[Vector], order: list[list[int]], average: dict[tuple[int, int], float], beta: float
) -> Vector:
    """The sum of the adjusted gradients; ``average`` is brought up to date."""
    total = np.zeros_like(gradients[0])
    for i, others in enumerate(order):
        g = gradients[i].copy()
        for j in others:
            phi = g @ gradients[j] / (np.linalg.norm(g) * np.linalg.norm(gradients[j]))
            wanted = average.get((i, j), 0.0)
            if phi < wanted:
                up = np.linalg.norm(g) * (wanted * np.sqrt(1 - phi**2) - phi * np.sqrt(1 - wanted**2))
                g = g + up / (np.linalg.norm(gradients[j]) * np.sqrt(1 - wanted**2)) * gradients[j]
            average[i, j] = (1 - beta) * wanted + beta * phi
        total += g
    return total


def min_norm(gradients: list[Vector]) -> Vector:
    """The shortest convex combination, by SciPy from several starts."""
    stacked, count = np.stack(gradients), len(gradients)
    scale = np.abs(stacked).max()
    inner = (stacked / scale) @ (stacked / scale).T
    best = None
    for start in [np.full(count, 1 / count), *np.eye(count)]:
        found = minimize(
            lambda w: 0.5 * w @ inner @ w,
            start,
            jac=lambda w: inner @ w,
            bounds=[(0, 1)] * count,
            constraints=[LinearConstraint(np.ones((1, count)), 1, 1)],
            method="SLSQP",
            options={"ftol": 1e-16, "maxiter": 1000},
        )
        if best is None or found.fun < best.fun:
            best = found
    assert best is not None
    weights = np.maximum(best.x, 0)
    return (weights / weights.sum()) @ stacked


def cagrad_objective(gradients: list[Vector], c: float) -> float:
    """The largest min_i g_i . d over |d - g_0| <= c |g_0|, found in the space of d by SciPy."""
    mean = sum(gradients) / len(gradients)
    radius = c * np.linalg.norm(mean)
    basis = np.linalg.svd(np.stack(gradients), full_matrices=False)[2]  # d needs no part outside their span
    small = [basis @ g for g in gradients]
    centre = basis @ mean
    best = -np.inf
    for start in [centre, *small]:
        begin = centre + (start - centre) / max(np.linalg.norm(start - centre), 1e-12) * radius * 0.5
        found = minimize(
            lambda x: -x[0],
            np.concatenate([[min(g @ begin for g in small)], begin]),
            jac=lambda x: np.concatenate([[-1.0], np.zeros(len(x) - 1)]),
            constraints=[
                {"type": "ineq", "fun": lambda x: np.array([g @ x[1:] - x[0] for g in small])},
                {"type": "ineq", "fun": lambda x: radius**2 - (x[1:] - centre) @ (x[1:] - centre)},
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 2000},
        )
        direction = found.x[1:]
        outside = np.linalg.norm(direction - centre)
        direction = centre + (direction - centre) * min(1.0, radius / max(outside, 1e-300))
        best = max(best, min(g @ direction for g in small))
    return float(best)


def imtl_g(gradients: list[Vector]) -> Vector:
    """The paper's closed form: alpha_2.. = g_1 U^T (D U^T)^-1, alpha_1 = 1 - sum."""
    units = [g / np.linalg.norm(g) for g in gradients]
    D = np.stack([gradients[0] - g for g in gradients[1:]])
    U = np.stack([units[0] - u for u in units[1:]])
    alpha = gradients[0] @ U.T @ np.linalg.inv(D @ U.T)
    alpha = np.concatenate([[1 - alpha.sum()], alpha])
    return alpha @ np.stack(gradients)


def aligned_mtl(gradients: list[Vector]) -> list[Vector]:
    """By the singular value decomposition of the matrix of gradients: all singular values become the smallest."""
    u, s, vt = np.linalg.svd(np.stack(gradients), full_matrices=False)
    return list(s.min() * u @ vt)


class Adam:
    """As in the paper, one number at a time."""

    def __init__(self, rate: float) -> None:
        self.rate, self.t, self.m, self.v = rate, 0, 0.0, 0.0

    def __call__(self, x: float, gradient: float) -> float:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient * gradient
        return x - self.rate * (self.m / (1 - 0.9**self.t)) / (math.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
