"""Metrics of predictions.

A new metric is one new file here, or in a plugin: a function ``(scores, labels, weights) -> float``, registered as ``metric``
with

- ``kinds``: task kinds (``TaskConfig.kind``) that have the metric, each with its sort position among the metrics of that
  kind; progress output shows the first;
- ``heading``: column title in tables; ``form``: number format in tables, ``{:.4f}`` by default;
- ``lower_is_better``: false by default;
- ``detail``: true for a metric that is recorded, but not in the tables of a training's output;
- ``of_positions``: true for a metric of the ranking of all items: a function of
  :class:`~dlrm_mtl.metrics.ranking.Positions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import Entry, home

Array = NDArray[np.float64]
Kind = Literal["binary", "real", "ranking"]

_REGISTRY = home("metric", __name__)


@dataclass(frozen=True)
class Metric:
    """Metric of one task; call it with logits or predictions, labels and weights, each [N]."""

    function: Callable[..., float]
    heading: str
    """Column title in tables."""
    form: str = "{:.4f}"
    """Number format in tables."""
    lower_is_better: bool = False
    of_positions: bool = False
    """True if ``function`` takes the positions of targets among all items instead."""
    detail: bool = False
    """True if tables of a training's output leave the metric out."""

    def __call__(self, scores: Array, labels: Array, weights: Array) -> float:
        """Compute the metric; nan where it is not defined, or if it needs the positions of targets."""
        return float("nan") if self.of_positions else self.function(scores, labels, weights)


class _ByKind(Mapping[str, Mapping[str, Metric]]):
    def __getitem__(self, kind: str) -> Mapping[str, Metric]:
        if kind not in get_args(Kind):
            raise KeyError(kind)
        own = [entry for entry in _REGISTRY if kind in entry.about["kinds"]]
        own.sort(key=lambda entry: (entry.about["kinds"][kind], entry.name))
        return {entry.name: _metric(entry) for entry in own}

    def __iter__(self) -> Iterator[str]:
        return iter(get_args(Kind))

    def __len__(self) -> int:
        return len(get_args(Kind))


class _ByName(Mapping[str, Metric]):
    def __getitem__(self, name: str) -> Metric:
        return {name: metric for of_kind in METRICS.values() for name, metric in of_kind.items()}[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for of_kind in METRICS.values() for name in of_kind))

    def __len__(self) -> int:
        return len(_REGISTRY.names())


def _metric(entry: Entry) -> Metric:
    about: dict[str, Any] = {key: value for key, value in entry.about.items() if key not in ("kinds", "order")}
    return Metric(entry.part, **about)


METRICS: Mapping[str, Mapping[str, Metric]] = _ByKind()
"""Registered metrics by kind of task (``TaskConfig.kind``), then by name."""

ALL_METRICS: Mapping[str, Metric] = _ByName()
"""Registered metrics by name, in the order of :data:`METRICS`."""
