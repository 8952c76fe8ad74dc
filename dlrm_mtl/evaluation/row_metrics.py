"""Metrics of single rows over all processes, whole and by slice, without any process seeing another one's rows.

Shapes: N rows of this process, G slices, W processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dlrm_mtl.evaluation.exchange import gather_arrays, sort_over_processes
from dlrm_mtl.metrics import Metric
from dlrm_mtl.metrics.forms import CHUNK, OverScores, RowSums, ScoreRange, bincount
from dlrm_mtl.metrics.sorted_rows import score_keys

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TaskRows:
    """Rows of this process that count for a task."""

    scores: NDArray[np.float32]
    """[N], logits or predictions."""
    labels: NDArray[np.float32]
    """[N]."""
    weights: NDArray[np.float32]
    """[N], above 0."""

    def chunk(self, start: int) -> tuple[Floats, Floats, Floats]:
        """Scores, labels and weights of the next :data:`CHUNK` rows from ``start`` on."""
        rows = slice(start, start + CHUNK)
        return tuple(each[rows].astype(np.float64) for each in (self.scores, self.labels, self.weights))  # type: ignore[return-value]


@dataclass(frozen=True)
class Grouping:
    """Slices of the rows of a task; one slice for all rows."""

    slice_of: Ids
    """[N], number of the slice of each row."""
    count: int
    """G."""


def metrics_of_rows(
    rows: TaskRows, groupings: Sequence[Grouping], metrics: Mapping[str, Metric]
) -> list[dict[str, Floats]]:
    """Compute metrics. Every process must call this, and all get the same result.

    Args:
        rows: rows whose scores are not nan on any process.
        groupings: ways to cut the rows, with the same numbers of slices on every process.
        metrics: metrics of rows by name.

    Returns:
        For every grouping, the metrics [G] by name; nan where undefined.
    """
    result: list[dict[str, Floats]] = [{} for _ in groupings]
    sums = {name: metric.over for name, metric in metrics.items() if isinstance(metric.over, RowSums)}
    scores = {name: metric.over for name, metric in metrics.items() if isinstance(metric.over, OverScores)}
    others = {name: metric for name, metric in metrics.items() if metric.over is None}
    for found, of_grouping in zip(_sums(rows, groupings, sums), result, strict=True):
        of_grouping.update(found)
    for grouping, of_grouping in zip(groupings, result, strict=True):
        if scores:
            of_grouping.update(_over_scores(rows, grouping, scores))
    if others:
        for found, of_grouping in zip(_gathered(rows, groupings, others), result, strict=True):
            of_grouping.update(found)
    return result


def _sums(rows: TaskRows, groupings: Sequence[Grouping], metrics: Mapping[str, RowSums]) -> list[dict[str, Floats]]:
    """Metrics of sums: terms are computed once for all groupings."""
    parts: list[dict[str, list[Floats]]] = [{name: [] for name in metrics} for _ in groupings]
    for start in range(0, max(len(rows.scores), 1), CHUNK):
        chunk = rows.chunk(start)
        for name, metric in metrics.items():
            terms = metric.terms(*chunk)
            for grouping, own in zip(groupings, parts, strict=True):
                own[name].append(_by_slice(terms, grouping.slice_of[start : start + CHUNK], grouping.count))
    result = []
    for own in parts:
        totals = {name: gather_arrays(np.sum(chunks, axis=0)).sum(axis=0) for name, chunks in own.items()}
        result.append({name: np.array([metrics[name].metric(row) for row in total]) for name, total in totals.items()})
    return result


def _by_slice(terms: Floats, slice_of: Ids, count: int) -> Floats:
    """[G, k], sums of the ``terms`` [k, N]."""
    if count == 1:
        return terms.sum(axis=1)[None]
    return np.stack([bincount(slice_of, row, count) for row in terms], axis=1)


def _over_scores(rows: TaskRows, grouping: Grouping, metrics: Mapping[str, OverScores]) -> dict[str, Floats]:
    keys = np.stack([grouping.slice_of, score_keys(rows.scores)], axis=1)
    weights = rows.weights.astype(np.float64)
    labels = rows.labels.astype(np.float64)
    ordered = sort_over_processes(keys, np.stack([weights * labels, weights * (1.0 - labels)], axis=1))
    edges = np.searchsorted(ordered.keys[:, 0], np.arange(grouping.count + 1))
    own = [ordered.values[start:stop] for start, stop in pairwise(edges)]
    everyone = gather_arrays(np.array([values.sum(axis=0) for values in own]))  # [W, G, 2]
    below, total = everyone[: dist.get_rank()].sum(axis=0), everyone.sum(axis=0)
    parts = np.zeros((len(metrics), grouping.count))
    for number, values in enumerate(own):
        part = ScoreRange(values[:, 0], values[:, 1], *below[number].tolist(), *total[number].tolist())
        for row, metric in enumerate(metrics.values()):
            if metric.defined(part.positive_total, part.negative_total):
                parts[row, number] = metric.part(part)
    of_all = gather_arrays(parts)  # [W, M, G]
    result = {}
    for row, (name, metric) in enumerate(metrics.items()):
        combined = of_all[:, row].max(axis=0) if metric.combine == "max" else of_all[:, row].sum(axis=0)
        there = [metric.defined(positive, negative) for positive, negative in total.tolist()]
        result[name] = np.where(there, combined, np.nan)
    return result


def _gathered(rows: TaskRows, groupings: Sequence[Grouping], metrics: Mapping[str, Metric]) -> list[dict[str, Floats]]:
    """Metrics that need all rows in one place, the first process."""
    values = np.stack([rows.scores, rows.labels, rows.weights], axis=1)
    codes = np.stack([grouping.slice_of for grouping in groupings], axis=1)
    counts = gather_arrays(np.array([len(values)]))[:, 0]
    first = dist.get_rank() == 0
    whole = []
    for own in (values, codes):
        padded = np.zeros((int(counts.max()), own.shape[1]), own.dtype)
        padded[: len(own)] = own
        parts = [torch.empty(padded.shape, dtype=torch.from_numpy(padded).dtype) for _ in counts] if first else None
        dist.gather(torch.from_numpy(padded), parts)
        whole.append(
            np.concatenate([part[:count].numpy() for part, count in zip(parts or [], counts, strict=False)] or [own])
        )
    scores, labels, weights = whole[0].astype(np.float64).T
    found: list[list[dict[str, Floats]]] = [[]]
    if first:
        for grouping, slice_of in zip(groupings, whole[1].T, strict=True):
            masks = [slice_of == number for number in range(grouping.count)]
            found[0].append(
                {
                    name: np.array([metric(scores[mask], labels[mask], weights[mask]) for mask in masks])
                    for name, metric in metrics.items()
                }
            )
    dist.broadcast_object_list(found)
    return found[0]
