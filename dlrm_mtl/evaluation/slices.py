"""Slices of a split by the codes of carried columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from dlrm_mtl.core.processes import gather_objects
from dlrm_mtl.data.carried_columns import NONE, ColumnEncoder, Numbers, ValueCodes
from dlrm_mtl.evaluation.exchange import gather_arrays, sort_over_processes
from dlrm_mtl.evaluation.results import PartKind
from dlrm_mtl.metrics.config import SliceConfig
from dlrm_mtl.metrics.sorted_rows import number_keys, numbers_of

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

LARGEST = 20
"""Default of ``largest``."""


@dataclass(frozen=True)
class SliceNames:
    """The G slices of a column, without their rows."""

    labels: list[str]
    kinds: list[PartKind]
    values: list[int]
    """Number of distinct values in each."""


def slices_of_values(codes: Ids, counts: Ids, values: Sequence[Any], largest: int) -> tuple[Ids, SliceNames]:
    """A slice for each of the ``largest`` values with the most rows, one for nulls, one for all others.

    Args:
        codes: [N] numbers in ``values``, :data:`NONE` for a null.
        counts: [V] rows of each value over all processes, and one entry for nulls.
        values: V values; those with equally many rows are taken in the order of their text.
        largest: number of values with their own slice.

    Returns:
        Number of the slice of each row [N], and the slices.
    """
    texts = [_text(value) for value in values]
    occurring = [code for code in range(len(values)) if counts[code]]
    occurring.sort(key=lambda code: (-counts[code], texts[code]))
    own, rest = occurring[:largest], occurring[largest:]
    labels: list[str] = [texts[code] for code in own]
    kinds: list[PartKind] = ["value"] * len(own)
    sizes = [1] * len(own)
    slice_of = np.zeros(len(values) + 1, np.int64)
    slice_of[own] = np.arange(len(own))
    if counts[len(values)]:
        slice_of[len(values)] = len(labels)
        labels, kinds, sizes = [*labels, "none"], [*kinds, "none"], [*sizes, 1]
    if rest:
        slice_of[rest] = len(labels)
        labels, kinds, sizes = [*labels, "other"], [*kinds, "other"], [*sizes, len(rest)]
    return slice_of[np.where(codes == NONE, len(values), codes)], SliceNames(labels, kinds, sizes)


def slices_of_numbers(numbers: Floats, edges: Sequence[float]) -> tuple[Ids, SliceNames]:
    """A slice for each range between ascending ``edges``, and one for nulls; empty ones as well.

    Args:
        numbers: [N], nan for a null.
        edges: E edges; a number that equals one belongs to the range above.

    Returns:
        Number of the slice of each row [N], from 0 to E + 1, and the slices.
    """
    labels = _ranges(_short(edges))
    slice_of = np.searchsorted(np.asarray(edges, np.float64), numbers, side="right").astype(np.int64)
    slice_of[np.isnan(numbers)] = len(labels)
    kinds: list[PartKind] = [*(["range"] * len(labels)), "none"]  # type: ignore[list-item]
    return slice_of, SliceNames([*labels, "none"], kinds, [1] * len(kinds))


def by(config: SliceConfig) -> Literal["values", "edges", "quantiles"]:
    """Way in which a column is cut."""
    if config.edges is not None:
        return "edges"
    return "values" if config.quantiles is None else "quantiles"


def _ranges(edges: list[str]) -> list[str]:
    if not edges:
        return ["all"]
    inner = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"below {edges[0]}", *inner, f"from {edges[-1]}"]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(edges: Sequence[float]) -> list[str]:
    """The edges with as few digits as tell them apart."""
    texts: list[str] = []
    for digits in range(3, 18):
        texts = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(texts)) == len(edges):
            break
    return texts


def shared_slices(config: SliceConfig, encoder: ColumnEncoder, codes: Ids) -> tuple[Ids, SliceNames]:
    """Slices of a carried column, the same on every process. Every process must call this.

    Args:
        config: way to cut the column.
        encoder: encoder of the column on this process.
        codes: [N] codes of this process's rows.

    Returns:
        Number of the slice of each row [N], and the slices.
    """
    if isinstance(encoder, Numbers):
        numbers = codes.view(np.float64)
        edges = quantile_edges(numbers, config.quantiles) if config.quantiles else config.edges
        return slices_of_numbers(numbers, edges or [])
    assert isinstance(encoder, ValueCodes)
    counts = np.bincount(np.where(codes == NONE, len(encoder.values), codes), minlength=len(encoder.values) + 1)
    every = gather_objects((encoder.values, counts))
    values = list(dict.fromkeys(value for known, _ in every for value in known))
    place = {value: number for number, value in enumerate(values)}
    total = np.zeros(len(values) + 1, np.int64)
    for known, found in every:
        np.add.at(total, [*(place[value] for value in known), len(values)], found)
    shared = np.array([place[value] for value in encoder.values], np.int64)
    codes = np.where(codes == NONE, NONE, np.append(shared, 0)[codes * (codes != NONE)])
    return slices_of_values(codes, total, values, config.largest or LARGEST)


def quantile_edges(numbers: Floats, count: int) -> list[float]:
    """Edges between ``count`` ranges with about equally many of the numbers of all processes; fewer if many are equal.

    Edge j is the number with N j / count smaller or equal ones before it, of N numbers. Every process must call this.
    """
    known = numbers[~np.isnan(numbers)]
    rows = sort_over_processes(number_keys(known)[:, None], np.ones((len(known), 1)))
    reached = np.cumsum(rows.values[:, 0])
    totals = gather_arrays(reached[-1:] if len(reached) else np.zeros(1))[:, 0]
    before, whole = float(totals[: dist.get_rank()].sum()), float(totals.sum())
    wanted = whole * np.arange(count) // count  # the first is the smallest number
    places = np.searchsorted(reached, wanted - before, side="right")
    own = (wanted >= before) & (places < len(reached))
    found = np.full(count, -np.inf)
    found[own] = numbers_of(rows.keys[places[own], 0])
    edges = gather_arrays(found).max(axis=0)
    return [float(edge) for edge in np.unique(edges[1:]) if edge > edges[0]]
