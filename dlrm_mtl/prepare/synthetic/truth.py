"""Synthetic data: true logits with wanted rates, correlations and Bayes AUCs, and the exact values of these.

A label is 1 with probability sigmoid(logit), independently given the row. No model can have a higher expected AUC than the
true logit itself; that is the Bayes AUC. Wanted values are fitted on one sample of rows, and measured on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.metrics.binary import auc
from dlrm_mtl.prepare.synthetic.world import PARTS, World

Floats = NDArray[np.float64]

BLOCK_ROWS = 65536
BLOCKS = 16
"""Number of blocks of rows for estimating Bayes values; their spread gives the standard error."""

CALIBRATION_STREAM, TRUTH_STREAM = 1 << 16, (1 << 16) + 1
_QUANTILES = 8192
_STEEPEST = 200.0


@dataclass(frozen=True)
class WantedLabels:
    """Requested properties of the labels."""

    rates: tuple[float, ...]
    """Fraction of positives of each task."""
    aucs: tuple[float, ...]
    """Bayes AUC of each task."""
    correlation: float
    """Correlation between the true logits of every two tasks."""
    interactions: float
    """Fraction of the interactions in the variance of a score."""
    dense: float
    """Fraction of the dense features in it; main effects have the rest."""


@dataclass(frozen=True)
class Truth:
    """Map from the parts of :class:`World`'s rows to true logits.

    raw = sum over parts of weight * (part - mean); score = raw @ mixing.T; logit = intercept + slope * score.
    """

    mean: list[list[float]]
    """[parts, tasks]."""
    weight: list[list[float]]
    """[parts, tasks]."""
    mixing: list[list[float]]
    """[tasks, tasks]."""
    intercept: list[float]
    slope: list[float]

    def logits(self, parts: Floats) -> Floats:
        """True logits [rows, tasks] for parts [parts, rows, tasks]."""
        return np.asarray(self.intercept) + np.asarray(self.slope) * self._scores(parts)

    def _scores(self, parts: Floats) -> Floats:
        centred = parts - np.asarray(self.mean)[:, None]
        return np.einsum("prt,pt->rt", centred, np.asarray(self.weight)) @ np.asarray(self.mixing).T

    def as_json(self) -> dict[str, Any]:
        """Content for truth.json."""
        return {"parts": list(PARTS), **asdict(self)}


def fit_truth(world: World, wanted: WantedLabels, rows: int = 2 * BLOCK_ROWS) -> Truth:
    """Find the truth with the wanted properties, on ``rows`` rows drawn for this.

    Raises:
        UserError: the features cannot give them.
    """
    drawn = world.draw(CALIBRATION_STREAM, 0, rows)
    shares = np.array([1.0 - wanted.interactions - wanted.dense, wanted.interactions, wanted.dense])
    spread = drawn.parts.std(axis=1)  # [parts, tasks]
    if (spread[shares > 0] < 1e-9).any():
        part = PARTS[int(np.flatnonzero((spread < 1e-9).any(axis=1) & (shares > 0))[0])]
        raise UserError(
            f"prepare synthetic: the {part} are the same in every row; raise --vocab, --ids-per-bag or --tables."
        )
    weight = np.where(shares[:, None] > 0, np.sqrt(shares)[:, None] / np.maximum(spread, 1e-9), 0.0)
    plain = Truth(
        mean=drawn.parts.mean(axis=1).tolist(),
        weight=weight.tolist(),
        mixing=np.eye(world.tasks).tolist(),
        intercept=[0.0] * world.tasks,
        slope=[1.0] * world.tasks,
    )
    raw = plain.logits(drawn.parts)
    covariance = np.atleast_2d(np.cov(raw, rowvar=False, bias=True))
    if np.linalg.eigvalsh(covariance)[0] < 1e-6:
        raise UserError(
            f"prepare synthetic: --tasks {world.tasks}: these features are too few for so many different scores; lower it, or "
            "raise --vocab, --tables or --dense."
        )
    correlation = np.full((world.tasks, world.tasks), wanted.correlation)
    np.fill_diagonal(correlation, 1.0)
    # Decorrelate the drawn scores, then correlate them as wanted (both by Cholesky factors).
    mixing = np.linalg.cholesky(correlation + 1e-9 * np.eye(world.tasks)) @ np.linalg.inv(
        np.linalg.cholesky(covariance)
    )
    scores = raw @ mixing.T
    lines = [
        _fit_logit(scores[:, task], rate, area)
        for task, (rate, area) in enumerate(zip(wanted.rates, wanted.aucs, strict=True))
    ]
    return Truth(
        mean=plain.mean,
        weight=plain.weight,
        mixing=mixing.tolist(),
        intercept=[intercept for intercept, _ in lines],
        slope=[slope for _, slope in lines],
    )


def measure_block(world: World, truth: Truth, block: int) -> dict[str, Any]:
    """Bayes values of ``BLOCK_ROWS`` rows, lists by task, with the labels' randomness integrated out."""
    logits = truth.logits(world.draw(TRUTH_STREAM, block, BLOCK_ROWS).parts)
    chances = sigmoid(logits)
    return {
        "auc": [expected_auc(logits[:, task]) for task in range(world.tasks)],
        "log_loss": (np.logaddexp(0.0, logits) - chances * logits).mean(axis=0).tolist(),
        "rate": chances.mean(axis=0).tolist(),
        "correlation": np.atleast_2d(np.corrcoef(logits, rowvar=False)).tolist(),
    }


def summarise(blocks: Sequence[dict[str, Any]], names: Sequence[str], wanted: WantedLabels) -> dict[str, Any]:
    """Means and standard errors over blocks, for truth.json."""

    def over_blocks(key: str, task: int) -> tuple[float, float]:
        values = np.array([block[key][task] for block in blocks])
        return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)

    tasks = {}
    for task, name in enumerate(names):
        entry: dict[str, Any] = {"wanted": {"auc": wanted.aucs[task], "rate": wanted.rates[task]}}
        for key in ("auc", "log_loss", "rate"):
            entry[key], entry[f"{key}_standard_error"] = over_blocks(key, task)
        tasks[name] = entry
    correlation = np.mean([block["correlation"] for block in blocks], axis=0)
    return {"rows": len(blocks) * BLOCK_ROWS, "tasks": tasks, "correlation": np.round(correlation, 4).tolist()}


def expected_auc(logits: Floats) -> float:
    """Expected AUC of ``logits`` [n] over their random labels: each row counts as positive and as negative, by its chances."""
    chances = sigmoid(logits)
    weights = np.concatenate([chances, 1.0 - chances])
    labels = np.concatenate([np.ones_like(logits), np.zeros_like(logits)])
    return auc(np.concatenate([logits, logits]), labels, weights)


def sigmoid(logits: Floats) -> Floats:
    """The logistic function, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def _fit_logit(scores: Floats, rate: float, area: float) -> tuple[float, float]:
    """Intercept and slope with which sigmoid(intercept + slope * score) has this mean and this Bayes AUC."""
    levels = np.quantile(scores, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)

    def intercept(slope: float) -> float:
        reach = slope * float(np.abs(levels).max()) + 50.0
        low, high = -reach, reach
        for _ in range(48):
            middle = (low + high) / 2
            low, high = (middle, high) if sigmoid(middle + slope * levels).mean() < rate else (low, middle)
        return (low + high) / 2

    low, high = 0.0, _STEEPEST
    highest = expected_auc(intercept(high) + high * levels)
    if highest < area:
        raise UserError(
            f"prepare synthetic: --auc {area:g}: with these features no score has more than {highest:.4f}; lower it, or raise "
            "--vocab, --tables or --dense."
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_auc(intercept(middle) + middle * levels) < area else (low, middle)
    slope = (low + high) / 2
    return intercept(slope), slope
