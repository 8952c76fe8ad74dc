"""Metrics of a task with a real label, exact over all rows.

Every function takes predictions, labels and weights >= 0, each [N] float64; rows of weight 0 are ignored. Without rows, a
metric is nan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import register

Array = NDArray[np.float64]


@register("metric", "mse", kinds={"real": 20}, heading="MSE", lower_is_better=True)
def mse(predictions: Array, labels: Array, weights: Array) -> float:
    """Mean squared error."""
    return _mean(np.square(predictions - labels), weights)


@register("metric", "rmse", kinds={"real": 10}, heading="RMSE", lower_is_better=True)
def rmse(predictions: Array, labels: Array, weights: Array) -> float:
    """Root of the mean squared error, in units of the label."""
    return float(np.sqrt(mse(predictions, labels, weights)))


@register("metric", "mae", kinds={"real": 30}, heading="MAE", lower_is_better=True)
def mae(predictions: Array, labels: Array, weights: Array) -> float:
    """Mean absolute error, in units of the label."""
    return _mean(np.abs(predictions - labels), weights)


def _mean(errors: Array, weights: Array) -> float:
    return float(np.average(errors, weights=weights)) if weights.sum() > 0 else float("nan")
