"""Calibration of a bundle's predictions: maps from a binary task's raw prediction to a probability, in plain numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dlrm_mtl.core.json_text import parse_mapping
from dlrm_mtl.core.schema import Strict, validate
from dlrm_mtl.serve.tensor_files import REMEDY

CALIBRATION_FILE = "calibration.json"
Method = Literal["isotonic", "platt", "negatives"]
"""``isotonic``: a monotone step function. ``platt``: a line on the logit. ``negatives``: undoes the sampling of negatives."""
Doubles = NDArray[np.float64]
SMALLEST = 2.0**-149
"""Smallest prediction above 0; 0 is taken for it where a logit is needed."""
LARGEST_BELOW_1 = 1.0 - 2.0**-25
"""1, the rounded prediction, is taken for this where a logit is needed."""


class IsotonicMap(Strict):
    """Linear interpolation between points, constant outside (Zadrozny and Elkan, KDD 2002)."""

    method: Literal["isotonic"] = "isotonic"
    predictions: list[float] = Field(min_length=1)
    """Raw predictions of the points, ascending."""
    probabilities: list[float]
    """Probabilities of the points, not descending."""

    @model_validator(mode="after")
    def _ascending(self) -> IsotonicMap:
        x, y = self.predictions, self.probabilities
        if len(x) != len(y) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any() or min(y) < 0 or max(y) > 1:
            raise ValueError("the points do not ascend from 0 to 1.")
        return self

    def apply(self, predictions: Doubles) -> Doubles:
        """Probabilities [N] of raw predictions [N]."""
        mapped: Doubles = np.interp(predictions, self.predictions, self.probabilities)
        return mapped


class PlattMap(Strict):
    """sigmoid(slope logit(p) + intercept) (Platt, 1999); it keeps the order of all predictions."""

    method: Literal["platt"] = "platt"
    slope: float = Field(gt=0)
    intercept: float

    def apply(self, predictions: Doubles) -> Doubles:
        """Probabilities [N] of raw predictions [N]."""
        return sigmoid(self.slope * logit(predictions) + self.intercept)


class KeptNegativesMap(Strict):
    """p / (p + (1 - p) / kept): undoes training on a share of the negatives (He et al., ADKDD 2014, section 6.3)."""

    method: Literal["negatives"] = "negatives"
    kept: float = Field(gt=0, le=1)
    """Share of the negatives that was kept."""

    def apply(self, predictions: Doubles) -> Doubles:
        """Probabilities [N] of raw predictions [N]."""
        mapped: Doubles = predictions / (predictions + (1.0 - predictions) / self.kept)
        return mapped


CalibrationMap = Annotated[IsotonicMap | PlattMap | KeptNegativesMap, Field(discriminator="method")]


class Measured(Strict):
    """Errors of a task's predictions, before and after; null where one is not defined."""

    rows: int
    """Number of rows with a label."""
    ece: tuple[float | None, float | None]
    """Expected calibration error."""
    ne: tuple[float | None, float | None]
    """Normalised entropy."""
    log_loss: tuple[float | None, float | None]


class BundleCalibration(Strict):
    """The content of ``calibration.json``."""

    tasks: dict[str, CalibrationMap] = Field(min_length=1)
    fitted_on: str
    """Split that the maps were fitted on."""
    measured_on: str | None
    """Split that was measured, another one; None if the data set has none."""
    measured: dict[str, Measured]
    """Errors by task."""

    def apply(self, task: str, predictions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrated predictions [N] of a task; of a task without a map, the predictions."""
        found = self.tasks.get(task)
        return predictions if found is None else found.apply(predictions.astype(np.float64)).astype(np.float32)


def read_calibration(folder: Path) -> BundleCalibration | None:
    """The calibration of the bundle in ``folder``, whose bytes have been checked; None if it has none."""
    place = folder / CALIBRATION_FILE
    if not place.is_file():
        return None
    return validate(BundleCalibration, parse_mapping(place.read_bytes(), place, REMEDY), str(place))


def logit(predictions: Doubles) -> Doubles:
    """log(p / (1 - p)) of predictions in [0, 1], finite."""
    inside = np.clip(predictions, SMALLEST, LARGEST_BELOW_1)
    found: Doubles = np.log(inside) - np.log1p(-inside)
    return found


def sigmoid(logits: Doubles) -> Doubles:
    """1 / (1 + exp(-x)) without overflow."""
    found: Doubles = np.exp(-np.logaddexp(0.0, -logits))
    return found
