"""Metrics of predictions. A new metric is one function (scores, labels, weights) -> float, and one line below."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.metrics.binary import auc, calibration, log_loss, normalized_entropy, positives

Metric = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], float]

METRICS: dict[str, Metric] = {
    "auc": auc,
    "log_loss": log_loss,
    "normalized_entropy": normalized_entropy,
    "calibration": calibration,
    "positives": positives,
}
