"""Calibration maps of :mod:`dlrm_mtl.serve.calibration` in operations of PyTorch that every exporter knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrm_mtl.serve.calibration import (
    LARGEST_BELOW_1,
    SMALLEST,
    CalibrationMap,
    IsotonicMap,
    KeptNegativesMap,
    PlattMap,
)


class GraphCalibration(nn.Module):
    """Calibrated predictions [B] float32 of raw ones, computed in float64.

    Args:
        map: the map of a task.
    """

    points: Tensor
    """[2, P] float64: raw predictions and probabilities of an isotonic map's points."""

    def __init__(self, map: CalibrationMap) -> None:
        super().__init__()
        self.map = map
        if isinstance(map, IsotonicMap):
            self.register_buffer("points", torch.tensor([map.predictions, map.probabilities], dtype=torch.float64))

    def forward(self, predictions: Tensor) -> Tensor:
        """Map ``predictions`` [B]."""
        return self._mapped(predictions.double()).float()

    def _mapped(self, raw: Tensor) -> Tensor:
        found = self.map
        if isinstance(found, PlattMap):
            inside = raw.clamp(SMALLEST, LARGEST_BELOW_1)
            return torch.sigmoid(found.slope * (torch.log(inside) - torch.log(1.0 - inside)) + found.intercept)
        if isinstance(found, KeptNegativesMap):
            return raw / (raw + (1.0 - raw) / found.kept)
        x, y = self.points
        if len(x) == 1:
            return torch.zeros_like(raw) + y
        after = (x <= raw.unsqueeze(1)).sum(dim=1).clamp(1, len(x) - 1)
        share = ((raw - x[after - 1]) / (x[after] - x[after - 1])).clamp(0.0, 1.0)
        return y[after - 1] + share * (y[after] - y[after - 1])
