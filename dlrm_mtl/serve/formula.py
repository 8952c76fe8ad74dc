"""The score that candidates are ordered by, from the predictions of several tasks. Nothing is evaluated as code."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.config.serving import ProductTerm, ScoreFormula

Predictions = Mapping[str, NDArray[np.float32]]
"""Predictions by task, [N] each."""
TINY = float(np.finfo(np.float32).tiny)
"""Smallest factor of a product: a power of 0 with a negative exponent is then a number, too."""
LARGEST = float(np.finfo(np.float32).max)


def combined(formula: ScoreFormula, predictions: Predictions) -> NDArray[np.float32]:
    """Scores [N] of ``formula``, computed in double precision and rounded to float32.

    They are finite for finite predictions: factors of products are at least :data:`TINY`, and a score that is beyond the range
    of float32 becomes its largest or smallest number.
    """
    total: NDArray[np.float64]
    if isinstance(formula.sum, dict):
        total = _sum(formula.sum, predictions)
    elif formula.sum is not None:
        total = np.add.reduce([term.weight * np.exp(_logarithm(term.product, predictions)) for term in formula.sum])
    elif isinstance(formula.product, dict):
        total = np.exp(_logarithm(formula.product, predictions))
    else:
        factors = [(factor.exponent, _sum(factor.sum, predictions)) for factor in formula.product or []]
        total = np.exp(_in_range(np.add.reduce([exponent * _log(sums) for exponent, sums in factors])))
    return np.clip(total, -LARGEST, LARGEST).astype(np.float32)


def tasks_of(formula: ScoreFormula) -> list[str]:
    """Names of the tasks in ``formula``, each once."""
    parts = [part for part in (formula.sum, formula.product) if part is not None]
    named = [
        name
        for part in parts
        for inner in ([part] if isinstance(part, dict) else part)
        for name in (
            inner if isinstance(inner, dict) else inner.product if isinstance(inner, ProductTerm) else inner.sum
        )
    ]
    return list(dict.fromkeys(named))


def _sum(weights: Mapping[str, float], predictions: Predictions) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.add.reduce(
        [w * predictions[task].astype(np.float64) for task, w in weights.items()]
    )
    return total


def _logarithm(exponents: Mapping[str, float], predictions: Predictions) -> NDArray[np.float64]:
    """Logarithm of a product of powers."""
    return _in_range(np.add.reduce([e * _log(predictions[task].astype(np.float64)) for task, e in exponents.items()]))


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithm: NDArray[np.float64] = np.log(np.maximum(values, TINY))
    return logarithm


def _in_range(logarithm: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(logarithm, np.log(TINY), np.log(LARGEST))
