"""AUC within groups, such as the rows of a user or a request: GAUC (Zhu et al., KDD 2017).

Shapes: N rows; n rows with different group and score; G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import register
from dlrm_mtl.metrics.forms import bincount
from dlrm_mtl.metrics.sorted_rows import merge_rows, score_keys

Ids = NDArray[np.int64]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class GroupAucs:
    """Sums over groups. Groups of one class have no AUC and are left out."""

    weighted: float
    """Sum over the groups of their weight times their AUC."""
    weight: float
    """Sum of the groups' weights; a group's weight is that of its rows."""
    groups: int
    """Number of groups with both classes."""
    left_out: int
    """Number of groups with one class only."""

    @classmethod
    def of(cls, sums: Array) -> GroupAucs:
        """The fields from an array [4]."""
        return cls(float(sums[0]), float(sums[1]), round(sums[2]), round(sums[3]))


@dataclass(frozen=True)
class GroupPairs:
    """Groups with weights of their rows."""

    positive: Array
    """[G], weight of the positives."""
    negative: Array
    """[G], weight of the negatives."""
    pairs: Array
    """[G], weight of the pairs of a positive and a negative below it, ties counting half."""

    def sums(self, parts: Ids, count: int) -> Array:
        """[count, 4], the fields of :class:`GroupAucs` for each of ``count`` parts of the groups.

        Args:
            parts: [G], part of each group, from 0 to count - 1.
            count: number of parts.
        """
        both = (self.positive > 0) & (self.negative > 0)
        one = (self.positive + self.negative > 0) & ~both
        weights = np.where(both, self.positive + self.negative, 0.0)
        aucs = np.divide(self.pairs, self.positive * self.negative, out=np.zeros_like(weights), where=both)
        columns = (weights * aucs, weights, both.astype(np.float64), one.astype(np.float64))
        return np.stack([bincount(parts, column, count) for column in columns], axis=1)


def group_starts(keys: Ids) -> Ids:
    """[G], first row of each group of equal rows of the sorted ``keys`` [n, k]."""
    return np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)])[: len(keys)])


def group_pairs(starts: Ids, positive: Array, negative: Array) -> GroupPairs:
    """Count the pairs in every group.

    Args:
        starts: [G], first row of each group.
        positive: [n], weights of positives, sorted by group and, in a group, by score.
        negative: [n], weights of negatives.
    """
    if not len(starts):
        return GroupPairs(np.empty(0), np.empty(0), np.empty(0))
    # Extended precision: a group's sums are differences of sums over all groups.
    running = np.cumsum(negative, dtype=np.longdouble) - negative
    sizes = np.diff(np.append(starts, len(positive)))
    below = (running - np.repeat(running[starts], sizes)).astype(np.float64)
    pairs = positive * (below + 0.5 * negative)
    return GroupPairs(*(np.add.reduceat(each, starts) for each in (positive, negative, pairs)))


def group_aucs(scores: Array, labels: Array, weights: Array, groups: Ids) -> GroupAucs:
    """AUC in every group.

    Args:
        scores: [N], compared as float32.
        labels: [N], in {0, 1}.
        weights: [N], at least 0.
        groups: [N], group of each row.

    Raises:
        ValueError: a score is nan.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is nan, which has no place in an order; leave such rows out, or repair the model")
    labels, weights = labels.astype(np.float64), weights.astype(np.float64)
    keys = np.stack([groups, score_keys(scores.astype(np.float32))], axis=1)
    rows = merge_rows(keys, np.stack([weights * labels, weights * (1.0 - labels)], axis=1))
    starts = group_starts(rows.keys[:, :1])
    found = group_pairs(starts, rows.values[:, 0], rows.values[:, 1]).sums(np.zeros(len(starts), np.int64), 1)
    return GroupAucs.of(found[0])


@register("metric", "gauc", kinds={"binary": 15}, heading="GAUC", of_groups=True)
def gauc(found: GroupAucs) -> float:
    """Mean AUC of the groups, weighted by their rows; nan if no group has both classes."""
    return found.weighted / found.weight if found.weight > 0 else float("nan")


@register(
    "metric", "gauc_groups", kinds={"binary": 16}, heading="GAUC groups", form="{:,.0f}", of_groups=True, detail=True
)
def gauc_groups(found: GroupAucs) -> float:
    """Number of groups with both classes, which GAUC is the mean of."""
    return float(found.groups)


@register(
    "metric", "gauc_left_out", kinds={"binary": 17}, heading="left out", form="{:,.0f}", of_groups=True, detail=True
)
def gauc_left_out(found: GroupAucs) -> float:
    """Number of groups with one class only, which GAUC leaves out."""
    return float(found.left_out)
