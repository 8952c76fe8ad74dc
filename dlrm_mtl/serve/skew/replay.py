"""A log read through a bundle: its rows scored again, and their values as the model gets them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.serve.bundle import read_model
from dlrm_mtl.serve.encode import Policies, RowEncoder
from dlrm_mtl.serve.load import served_input
from dlrm_mtl.serve.raw.open import RowKind, open_reader
from dlrm_mtl.serve.rows import Where
from dlrm_mtl.serve.scorer import Scorer
from dlrm_mtl.serve.skew.requests import LoggedRequest, read_requests
from dlrm_mtl.serve.skew.values import FeatureValues, hashable, joined, values_of

Key = tuple[Any, ...]
"""Values that identify a row."""


@dataclass
class Replay:
    """Logged scores beside those of the bundle."""

    rows: int = 0
    """Number of rows in the log."""
    requests: int = 0
    compared: int = 0
    """Number of rows with scores of the bundle's version."""
    differing: int = 0
    """Number of these rows with another score of some task."""
    largest: float = 0.0
    """Largest difference, absolute up to 1 and relative beyond."""
    task: str | None = None
    """Task of the largest difference."""
    versions: Counter[str] = field(default_factory=Counter)
    """Number of requests that other versions scored."""


@dataclass(frozen=True)
class Limits:
    """Limits from which on a difference is skew."""

    score: float = 1e-5
    stability: float = 0.25
    share: float = 0.05
    """Difference of the fractions of missing, empty and unknown values."""


@dataclass(frozen=True)
class Logged:
    """The log as the model gets it."""

    replay: Replay
    values: dict[str, FeatureValues]
    missing: dict[str, int]
    """Number of rows without the field of a feature."""
    keys: list[Key]
    """Key of every row."""


class LogReader:
    """Reader of a log through a bundle.

    Args:
        bundle: folder of the bundle.
        rows: rows in the log: ``prepared`` or ``raw``.
        missing: policies for missing fields; default: ``default``, so that no row is refused.
        unknown: policies for unknown ids; default: ``unknown``.
        plugins: modules that register parts of the model.

    Raises:
        UserError: there is no bundle, or it is not fit for use.
    """

    def __init__(
        self,
        bundle: str,
        rows: RowKind = "prepared",
        missing: Policies | None = None,
        unknown: Policies | None = None,
        plugins: Sequence[str] = (),
    ) -> None:
        missing, unknown = missing or "default", unknown or "unknown"
        self._scorer = Scorer(bundle, missing=missing, unknown=unknown, plugins=plugins, rows=rows)
        served = read_model(Path(bundle), list(plugins))
        given = served_input(Path(bundle), served)
        self.spec: DatasetSpec = served.dataset
        self.sizes = {
            name: size for name, size in given.selection.vocabulary_sizes.items() if name not in given.vocabularies
        }
        """Vocabulary size of every feature with bounded ids."""
        constants = given.selection.constants
        chosen = [*given.selection.sparse, *given.selection.dense]
        self.features = [served.dataset.feature(each.name) for each in chosen if each.name not in constants]
        """Features that the model reads when it serves."""
        self._encoder: RowEncoder = given.encoder(missing, unknown, open_reader(Path(bundle), served, rows))

    def read(self, log: str, keys: Sequence[str], limits: Limits) -> Logged:
        """Score the log's rows again, and gather their values.

        Args:
            log: the log, see :func:`~dlrm_mtl.serve.skew.requests.read_requests`.
            keys: columns that identify a row.
            limits: limits of equal scores.

        Raises:
            UserError: the log cannot be read, holds no row, or lacks a key.
        """
        replay, parts, missing = Replay(), dict[str, list[FeatureValues]](), Counter[str]()
        found: list[Key] = []
        for request in read_requests(log):
            if not len(request.rows):
                continue
            replay.requests += 1
            replay.rows += len(request.rows)
            where = Where(request.place)
            self._replay(request, where, replay, limits)
            columns, seen, _ = self._encoder.columns(request.rows, where)
            missing.update(seen["missing"])
            for name, column in columns.items():
                parts.setdefault(name, []).append(values_of(column))
            if keys:
                found += self._keys(request, columns, keys)
        if not replay.rows:
            raise UserError(f"{log}: there are no rows; name a log that has some.")
        return Logged(replay, {name: joined(each) for name, each in parts.items()}, dict(missing), found)

    def _replay(self, request: LoggedRequest, where: Where, replay: Replay, limits: Limits) -> None:
        if not request.scores:
            return
        if request.version not in (None, self._scorer.version):
            replay.versions[str(request.version)] += 1
            return
        odd = next((task for task in request.scores if task not in self._scorer.tasks), None)
        if odd is not None:
            raise UserError(
                f"{request.place}: scores of {odd!r}, which is no task of the bundle; name the bundle of the log."
            )
        scores = self._scorer.score(request.rows, where=where)
        bad = np.zeros(len(request.rows), np.bool_)
        places = np.arange(len(request.rows)) if request.order is None else request.order
        for task, logged in request.scores.items():
            own = scores[task][places].astype(np.float64)
            difference = np.abs(own - logged) / np.maximum(np.abs(logged), 1.0)
            bad[places] |= ~(difference <= limits.score)
            if len(difference) and difference.max() > replay.largest:
                replay.largest, replay.task = float(difference.max()), task
        replay.compared += len(places)
        replay.differing += int(bad.sum())

    def _keys(self, request: LoggedRequest, columns: Mapping[str, pa.Array], keys: Sequence[str]) -> Iterator[Key]:
        """Key of every row; features count as in the data set."""
        by_source = {feature.source: feature.name for feature in self.features}
        lists = []
        for key in keys:
            if key in by_source:
                lists.append(columns[by_source[key]].to_pylist())
                continue
            lists.append(request.column(key))
        return (tuple(map(hashable, row)) for row in zip(*lists, strict=True))
