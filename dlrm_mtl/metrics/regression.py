"""Metrics of a task with a real label, exact over all rows.

Every metric takes predictions, labels and weights >= 0, each [N] float64; rows of weight 0 are ignored. Without rows, a
metric is nan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import register
from dlrm_mtl.metrics.forms import RowSums, mean

Array = NDArray[np.float64]


def _squares(predictions: Array, labels: Array, weights: Array) -> Array:
    return np.stack([weights * np.square(predictions - labels), weights])


def _distances(predictions: Array, labels: Array, weights: Array) -> Array:
    return np.stack([weights * np.abs(predictions - labels), weights])


_mse = RowSums(_squares, mean)
_rmse = RowSums(_squares, lambda sums: float(np.sqrt(mean(sums))))
_mae = RowSums(_distances, mean)


@register("metric", "mse", kinds={"real": 20}, heading="MSE", lower_is_better=True, over=_mse)
def mse(predictions: Array, labels: Array, weights: Array) -> float:
    """Mean squared error."""
    return _mse(predictions, labels, weights)


@register("metric", "rmse", kinds={"real": 10}, heading="RMSE", lower_is_better=True, over=_rmse)
def rmse(predictions: Array, labels: Array, weights: Array) -> float:
    """Root of the mean squared error, in units of the label."""
    return _rmse(predictions, labels, weights)


@register("metric", "mae", kinds={"real": 30}, heading="MAE", lower_is_better=True, over=_mae)
def mae(predictions: Array, labels: Array, weights: Array) -> float:
    """Mean absolute error, in units of the label."""
    return _mae(predictions, labels, weights)
