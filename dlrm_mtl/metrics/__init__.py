"""Metrics of predictions.

A new metric is one new file here, or in a plugin: a function ``(scores, labels, weights) -> float``, registered as ``metric``
with

- ``kinds``: task kinds (``TaskConfig.kind``) that have the metric, each with its sort position among the metrics of that
  kind; progress output shows the first;
- ``heading``: column title in tables; ``form``: number format in tables, ``{:.4f}`` by default;
- ``lower_is_better``: false by default;
- ``detail``: true for a metric that is recorded, but not in the tables of a training's output;
- ``over``: form in which several processes compute the metric from their own rows, see :mod:`dlrm_mtl.metrics.forms`; without
  it, all rows of the task are gathered on the first process;
- ``of_positions``: true for a metric of the ranking of all items: a function of
  :class:`~dlrm_mtl.metrics.ranking.Positions`;
- ``of_groups``: true for a metric of the AUC of groups: a function of :class:`~dlrm_mtl.metrics.group_auc.GroupAucs`. In an
  evaluation its name is ``NAME@COLUMN``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import Entry, home
from dlrm_mtl.metrics.forms import OverScores, RowSums

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
    over: RowSums | OverScores | None = None
    """Form for several processes; None if it needs all rows in one place."""
    of_groups: bool = False
    """True if ``function`` takes the AUC of groups instead."""

    @property
    def of_rows(self) -> bool:
        """True if ``function`` takes scores, labels and weights."""
        return not self.of_positions and not self.of_groups

    def __call__(self, scores: Array, labels: Array, weights: Array) -> float:
        """Compute the metric; nan where it is not defined, or if it needs more than rows."""
        return self.function(scores, labels, weights) if self.of_rows else float("nan")


class _ByKind(Mapping[str, Mapping[str, Metric]]):
    def __getitem__(self, kind: str) -> Mapping[str, Metric]:
        if kind not in get_args(Kind):
            raise KeyError(kind)
        return {name: metric for name, metric in _of_kind(kind).items() if not metric.of_groups}

    def __iter__(self) -> Iterator[str]:
        return iter(get_args(Kind))

    def __len__(self) -> int:
        return len(get_args(Kind))


class _ByName(Mapping[str, Metric]):
    def __getitem__(self, name: str) -> Metric:
        base, _, column = name.partition("@")
        if column and base in _REGISTRY and _metric(_REGISTRY[base]).of_groups:
            metric = _metric(_REGISTRY[base])
            return replace(metric, heading=f"{metric.heading} {column}")
        return {name: metric for of_kind in METRICS.values() for name, metric in of_kind.items()}[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for of_kind in METRICS.values() for name in of_kind))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _of_kind(kind: str) -> dict[str, Metric]:
    own = [entry for entry in _REGISTRY if kind in entry.about["kinds"]]
    own.sort(key=lambda entry: (entry.about["kinds"][kind], entry.name))
    return {entry.name: _metric(entry) for entry in own}


def _metric(entry: Entry) -> Metric:
    about: dict[str, Any] = {key: value for key, value in entry.about.items() if key not in ("kinds", "order")}
    return Metric(entry.part, **about)


def task_metrics(kind: str, columns: Sequence[str] = ()) -> dict[str, Metric]:
    """Metrics of a task, in order.

    Args:
        kind: kind of the task.
        columns: columns of groups; a metric of groups is there once for each.
    """
    result: dict[str, Metric] = {}
    for name, metric in _of_kind(kind).items():
        names = [f"{name}@{column}" for column in columns] if metric.of_groups else [name]
        result |= {each: ALL_METRICS[each] for each in names}
    return result


def in_order(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics among ``names``, in the order of :data:`METRICS`; other names are left out."""
    places = [name for kind in get_args(Kind) for name in _of_kind(kind)]
    known = {name: ALL_METRICS[name] for name in dict.fromkeys(names) if name in ALL_METRICS}

    def place(name: str) -> int:
        return places.index(name if name in places else name.partition("@")[0])

    return dict(sorted(known.items(), key=lambda entry: place(entry[0])))


METRICS: Mapping[str, Mapping[str, Metric]] = _ByKind()
"""Registered metrics by kind of task (``TaskConfig.kind``), then by name, without those of groups."""

ALL_METRICS: Mapping[str, Metric] = _ByName()
"""Registered metrics by name, in the order of :data:`METRICS`; ``NAME@COLUMN`` finds a metric of groups."""
