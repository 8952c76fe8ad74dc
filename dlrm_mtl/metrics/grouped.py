"""Metrics of one score that orders the rows of each group, such as the candidates of a user; ties count as their average."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.metrics.ranking import Positions

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class GroupedOrder:
    """The rows of every group in the order of their scores, for metrics of several labels.

    Args:
        groups: [N] int64, the group of each row.
        scores: [N], of any number type.
    """

    def __init__(self, groups: NDArray[np.int64], scores: NDArray[np.floating]) -> None:
        self._order = np.lexsort((scores, groups))  # groups ascending, and scores ascending in each
        self._groups, self._scores = groups[self._order], scores[self._order]

    def gauc(self, positive: Mask, counted: Mask) -> float:
        """Mean over groups of the area under the ROC curve, weighted by their rows; nan if no group has both classes.

        Groups of one class are left out (Zhu et al., KDD 2017, GAUC).

        Args:
            positive: [N], True for rows to be found.
            counted: [N], rows that count.
        """
        group, low, high, label = self._ranked(positive, counted)
        if not len(group):
            return float("nan")
        ranks = (low + high + 1) / 2.0  # from 1, the mean over a tie
        rows, positives = np.bincount(group), np.bincount(group, label)
        sums = np.bincount(group, ranks * label)
        negatives = rows - positives
        both = (positives > 0) & (negatives > 0)
        if not both.any():
            return float("nan")
        p, n = positives[both], negatives[both]
        return float(np.average((sums[both] - p * (p + 1) / 2.0) / (p * n), weights=rows[both]))

    def positions(self, positive: Mask, counted: Mask) -> Positions:
        """Positions of the positive rows in their groups, for the metrics in :mod:`dlrm_mtl.metrics.ranking`."""
        group, low, high, label = self._ranked(positive, counted)
        rows = np.bincount(group)
        above = rows[group] - high if len(group) else high
        found = label > 0
        return Positions(group[found], above[found], (high - low)[found])

    def _ranked(
        self, positive: Mask, counted: Mask
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Array]:
        """Of the rows that count, in order: number of the group; rows of it below, and up to the end of the tie; label."""
        kept = counted[self._order]
        groups, scores, label = self._groups[kept], self._scores[kept], positive[self._order][kept].astype(np.float64)
        new_group = np.diff(groups, prepend=groups[:1] - 1) != 0
        new_tie = new_group | (np.diff(scores, prepend=scores[:1]) != 0)
        number = np.cumsum(new_group) - 1
        starts = np.flatnonzero(new_group)
        ties = np.flatnonzero(new_tie)
        tie = np.cumsum(new_tie) - 1
        first = starts[number] if len(groups) else number
        ends = np.append(ties[1:], len(groups))
        low = ties[tie] - first if len(groups) else number
        high = ends[tie] - first if len(groups) else number
        return number, low, high, label
