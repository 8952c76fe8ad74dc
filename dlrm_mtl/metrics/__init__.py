"""Metrics of predictions. A new metric is one function (scores, labels, weights) -> float, and one line below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.metrics.binary import auc, calibration, log_loss, normalized_entropy, positives
from dlrm_mtl.metrics.ranking import CUTOFFS
from dlrm_mtl.metrics.regression import mae, mse, rmse

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A metric of one task; call it with logits or predictions, labels and weights, each [N]."""

    function: Callable[[Array, Array, Array], float] | None
    """None for a metric of the order of all items, which :mod:`~dlrm_mtl.metrics.ranking` computes."""
    heading: str
    """What tables call it."""
    form: str = "{:.4f}"
    """How tables print it."""
    lower_is_better: bool = False

    def __call__(self, scores: Array, labels: Array, weights: Array) -> float:
        """Compute it; nan where it is not defined."""
        assert self.function is not None
        return self.function(scores, labels, weights)


METRICS: dict[str, dict[str, Metric]] = {
    "binary": {
        "auc": Metric(auc, "AUC"),
        "log_loss": Metric(log_loss, "log loss", lower_is_better=True),
        "normalized_entropy": Metric(normalized_entropy, "norm. entropy", lower_is_better=True),
        "calibration": Metric(calibration, "calibration", "{:.3f}"),
        "positives": Metric(positives, "positives", "{:,.0f}"),
    },
    "real": {
        "rmse": Metric(rmse, "RMSE", lower_is_better=True),
        "mse": Metric(mse, "MSE", lower_is_better=True),
        "mae": Metric(mae, "MAE", lower_is_better=True),
    },
    "ranking": {
        "mrr": Metric(None, "MRR"),
        **{
            f"{name}@{k}": Metric(None, f"{heading}@{k}")
            for k in CUTOFFS
            for name, heading in (("ndcg", "NDCG"), ("recall", "rec"), ("precision", "prec"))
        },
        "auc": Metric(auc, "AUC"),
    },
}
"""By what a task predicts (``TaskConfig.kind``), then by name. The first of a kind is what is shown on the way."""

ALL_METRICS: dict[str, Metric] = {name: metric for kind in METRICS.values() for name, metric in kind.items()}
