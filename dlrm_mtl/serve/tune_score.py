"""Tuning of the score's weights or exponents on labelled rows, usually the validation split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.config.serving import ScoreFormula
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.formula import combined
from dlrm_mtl.serve.score_objective import Goal, Judge

Form = Literal["product", "sum"]
DIGITS = 3
"""Significant digits of weights and exponents."""


@dataclass(frozen=True)
class TriedScore:
    """A score, and its metrics."""

    formula: ScoreFormula
    metrics: dict[str, float]
    """Metrics by ``TASK/METRIC``."""
    objective: float
    """Weighted sum of the metrics of the objective."""
    allowed: bool
    """True if all conditions hold."""


@dataclass(frozen=True)
class TunedScore:
    """The result of tuning."""

    start: TriedScore
    """The bundle's own score."""
    best: TriedScore
    """The best one that is allowed."""
    tried: list[TriedScore]
    """All scores in their order."""
    axes: list[str]
    """Metrics of the objective: the axes of the trade-off."""

    def point(self, each: TriedScore) -> list[float]:
        """Metrics of the objective."""
        return [each.metrics[name] for name in self.axes]

    @property
    def front(self) -> list[TriedScore]:
        """Scores that none other surpasses in one metric of the objective without being worse in another."""
        points = np.array([self.point(each) for each in self.tried])
        return [
            each
            for each, point in zip(self.tried, points, strict=True)
            if not ((points >= point).all(axis=1) & (points > point).any(axis=1)).any()
        ]


def tune(
    predictions: Mapping[str, NDArray[np.float32]],
    using: Sequence[str],
    judge: Judge,
    objective: Sequence[Goal],
    conditions: Sequence[Goal],
    start: ScoreFormula,
    form: Form,
    trials: int,
    seed: int,
) -> TunedScore:
    """Try scores of one form: first a few plain ones, then random ones, then neighbours of the best.

    Equal seeds give equal results.

    Exponents or weights are not negative. The order of candidates does not change if all of them are multiplied by a number, so
    the largest is 1; weights of a sum are drawn in units of the task's mean prediction.

    Args:
        predictions: [N] by task.
        using: binary tasks that the score may use.
        judge: metrics of a score.
        objective: metrics to maximise, with their weights.
        conditions: metrics that must reach a value.
        start: score to compare with.
        form: product of powers, or weighted sum.
        trials: number of scores to try.
        seed: seed of the random numbers.

    Raises:
        UserError: no score fulfils the conditions.
    """
    names = list(using)
    units = np.array([1.0 if form == "product" else 1.0 / max(float(predictions[name].mean()), 1e-9) for name in names])
    rng = np.random.default_rng(seed)
    tried: list[TriedScore] = []

    def attempt(formula: ScoreFormula) -> TriedScore:
        metrics = judge(combined(formula, predictions))
        allowed = all(metrics[goal.name] >= goal.number for goal in conditions)
        tried.append(TriedScore(formula, metrics, sum(g.number * metrics[g.name] for g in objective), allowed))
        return tried[-1]

    def shares(values: NDArray[np.float64]) -> ScoreFormula:
        values = values * units
        numbers = {name: _rounded(value) for name, value in zip(names, (values / values.max()).tolist(), strict=True)}
        return ScoreFormula.model_validate({form: {name: number for name, number in numbers.items() if number > 0}})

    first = attempt(start)
    size = len(names)
    for values in [*np.eye(size), np.ones(size)][: max(trials, 1)]:
        attempt(shares(values))
    rest = max(trials - size - 1, 0)
    for _ in range(rest // 2):
        attempt(shares(rng.dirichlet(np.full(size, 0.7)) + 1e-12))
    for number in range(rest - rest // 2):
        best = max((each for each in tried[1:]), key=_goodness(conditions))
        spread = 0.8 * 0.5 ** (4.0 * number / max(rest - rest // 2, 1))
        attempt(shares(_values(best.formula, form, names) / units * np.exp(rng.normal(0, spread, size)) + 1e-12))
    best = max(tried, key=_goodness(conditions))
    if not best.allowed:
        goal = min(conditions, key=lambda each: best.metrics[each.name] - each.number)
        raise UserError(
            f"no score of {len(tried)} fulfils the conditions; {goal.name} reached {best.metrics[goal.name]:.4f} where "
            f"{goal.number:g} is asked for: lower it, or try more with --trials."
        )
    return TunedScore(first, best, tried, [goal.name for goal in objective])


def _goodness(conditions: Sequence[Goal]) -> Callable[[TriedScore], tuple[float, float]]:
    """Key of the best score: first the conditions, as far as they do not hold, then the objective."""

    def key(each: TriedScore) -> tuple[float, float]:
        return sum(min(each.metrics[goal.name] - goal.number, 0.0) for goal in conditions), each.objective

    return key


def _values(formula: ScoreFormula, form: Form, names: Sequence[str]) -> NDArray[np.float64]:
    found = formula.product if form == "product" else formula.sum
    assert isinstance(found, dict)
    return np.array([found.get(name, 0.0) for name in names])


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if value >= 1e-6 else 0.0
