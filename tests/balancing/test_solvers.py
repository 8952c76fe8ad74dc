"""The three small convex problems: optimality, shown by what characterises the optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dlrm_mtl.balancing.base import cosines
from dlrm_mtl.balancing.cagrad import conflict_averse
from dlrm_mtl.balancing.nash_mtl import bargain
from dlrm_mtl.balancing.simplex import min_norm_weights

Matrix = NDArray[np.float64]


@st.composite
def gradients(draw: st.DrawFn, spread: float) -> Matrix:
    """[T, n]: in few dimensions or many, so that some depend on each other and some are opposed; over 2 ``spread`` decades."""
    generator = np.random.default_rng(draw(st.integers(0, 2**40)))
    tasks, width = draw(st.integers(2, 16)), draw(st.sampled_from([1, 2, 3, 8, 40]))
    rows = generator.normal(size=(tasks, width)) + draw(st.sampled_from([0.0, 0.5, 2.0]))
    return rows * 10.0 ** generator.uniform(-spread, spread, (tasks, 1))


@settings(max_examples=300, deadline=None)
@given(rows=gradients(spread=3))
def test_the_shortest_weighted_mean(rows: Matrix) -> None:
    weights = min_norm_weights(rows @ rows.T)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    # p is the shortest iff p . g_i >= p . p for all i; the least of the left sides bounds the optimum from below.
    shortest = weights @ rows
    size = np.linalg.norm(rows, axis=1)
    slack = rows @ shortest - shortest @ shortest
    assert (slack >= -1e-12 * size * (weights @ size)).all()


def test_the_shortest_weighted_mean_to_ten_digits() -> None:
    generator = np.random.default_rng(0)
    for tasks in range(2, 12):
        rows = generator.normal(size=(tasks, 30)) + 0.3
        shortest = min_norm_weights(rows @ rows.T) @ rows
        gap = shortest @ shortest - (rows @ shortest).min()
        assert gap <= 1e-13 * (rows * rows).sum(axis=1).max()
        # |p - p*|^2 <= gap would follow; on the face found the equations are solved exactly, which is better:
        active = min_norm_weights(rows @ rows.T) > 0
        np.testing.assert_allclose(rows[active] @ shortest, shortest @ shortest, rtol=1e-11)


@settings(max_examples=300, deadline=None)
@given(rows=gradients(spread=1), c=st.sampled_from([0.05, 0.5, 0.95]))
def test_conflict_averse_direction(rows: Matrix, c: float) -> None:
    tasks = len(rows)
    mean = rows.mean(axis=0)
    coefficients = conflict_averse(rows @ rows.T, c)
    direction = coefficients @ rows
    radius = c * np.linalg.norm(mean)
    longest = np.linalg.norm(rows, axis=1).max()
    assume(np.linalg.norm(mean) > 1e-6 * longest)
    assert np.linalg.norm(direction - mean) <= radius * (1 + 1e-7)
    # Any weights bound the optimum from above: min_i g_i . d <= g_w . g_0 + radius |g_w|.
    found = (rows @ direction).min()
    weights = coefficients - 1 / tasks
    combined = weights / weights.sum() @ rows
    bound = combined @ mean + radius * np.linalg.norm(combined)
    shortest = np.linalg.norm(rows, axis=1).min()
    opposed = np.linalg.norm(combined) < 2e-4 * shortest
    assert bound - found <= (1e-3 * shortest if opposed else 1e-7 * longest) * np.linalg.norm(mean)


def test_conflict_averse_direction_between_two_tasks_in_the_plane() -> None:
    # g_0 = (0, 1), d the point of the circle of radius c round it that serves the task (-3, 0.5) better: along g_w.
    rows = np.array([[3.0, 1.5], [-3.0, 0.5]])
    angles = np.linspace(0, 2 * math.pi, 400_001)
    circle = np.array([0.0, 1.0]) + 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    best = circle[np.argmax((circle @ rows.T).min(axis=1))]
    np.testing.assert_allclose(conflict_averse(rows @ rows.T, 0.5) @ rows, best, atol=1e-4)
    np.testing.assert_allclose(conflict_averse(rows @ rows.T, 0.0), [0.5, 0.5])
    np.testing.assert_allclose(conflict_averse(np.array([[1.0, -1.0], [-1.0, 1.0]]), 0.5), [0.5, 0.5])


@settings(max_examples=150, deadline=None)
@given(rows=gradients(spread=4))
def test_bargaining(rows: Matrix) -> None:
    cosine = cosines(torch.from_numpy(rows @ rows.T).unsqueeze(0))
    b = bargain(cosine)
    assert (b > 0).all()
    assert torch.isfinite(b).all()
    residual = (cosine @ b.unsqueeze(-1)).squeeze(-1) * b - 1 + 1e-10 * b**2
    assert residual.abs().max() < 1e-9 + 1e-14 * b.max() ** 2  # what float64 can tell of C b when terms cancel
