"""Draws from a bounded Zipf distribution of any size, without a table of its probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Zipf:
    """Ids 1 to ``size`` with probability proportional to ``id ** -exponent``; exponent 0 is the uniform distribution.

    Rejection-inversion (Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone discrete
    distributions", ACM TOMACS 6(3), 1996): exact, and constant in memory and time for any ``size``.
    """

    size: int
    exponent: float

    def sample(self, generator: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Draw ``count`` ids [count]."""
        low = self._integral(np.float64(self.size + 0.5))
        span = self._integral(np.float64(1.5)) - 1.0 - low
        threshold = 2.0 - self._inverse(self._integral(np.float64(2.5)) - 2.0**-self.exponent)
        ids = np.empty(count, dtype=np.int64)
        missing = np.arange(count)
        while len(missing):
            area = low + generator.random(len(missing)) * span
            points = self._inverse(area)
            drawn = np.clip(np.rint(points), 1.0, float(self.size))
            accepted = drawn - points <= threshold
            rest = ~accepted
            accepted[rest] = area[rest] >= self._integral(drawn[rest] + 0.5) - drawn[rest] ** -self.exponent
            ids[missing[accepted]] = drawn[accepted].astype(np.int64)
            missing = missing[~accepted]
        return ids

    def _integral(self, x: Floats | np.float64) -> Floats:
        """Integral of t ** -exponent from 1 to ``x``."""
        logs = np.log(x)
        rest = 1.0 - self.exponent
        return np.asarray(logs if rest == 0 else np.expm1(rest * logs) / rest)

    def _inverse(self, area: Floats) -> Floats:
        rest = 1.0 - self.exponent
        return np.asarray(np.exp(area if rest == 0 else np.log1p(np.maximum(area * rest, -1.0)) / rest))
