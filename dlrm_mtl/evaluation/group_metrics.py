"""AUC within groups over all processes, whole and by slice.

The rows are sorted over processes by slice, group and score, so a group is on one process, or on neighbours. What neighbours
must know of a group that they share are three sums.

Shapes: N rows of this process, S slices, G groups of this process.
"""

from __future__ import annotations

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from dlrm_mtl.data.carried_columns import NONE
from dlrm_mtl.evaluation.exchange import gather_arrays, sort_over_processes
from dlrm_mtl.evaluation.row_metrics import Grouping, TaskRows
from dlrm_mtl.metrics.group_auc import GroupAucs, GroupPairs, group_pairs, group_starts
from dlrm_mtl.metrics.sorted_rows import score_keys

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


def aucs_of_groups(rows: TaskRows, groups: Ids, grouping: Grouping) -> list[GroupAucs]:
    """AUC within the groups of every slice. Every process must call this, and all get the same result.

    Args:
        rows: rows of a task whose scores are not nan on any process.
        groups: [N], group of each row; rows without one (:data:`NONE`) do not count.
        grouping: slices of the rows; a group in two slices is two groups.
    """
    there = groups != NONE
    keys = np.stack([grouping.slice_of[there], groups[there], score_keys(rows.scores[there])], axis=1)
    weights, labels = rows.weights[there].astype(np.float64), rows.labels[there].astype(np.float64)
    ordered = sort_over_processes(keys, np.stack([weights * labels, weights * (1.0 - labels)], axis=1))
    starts = group_starts(ordered.keys[:, :2])
    names = ordered.keys[starts, :2]
    own = group_pairs(starts, ordered.values[:, 0], ordered.values[:, 1])
    ends = _ends(names, own)
    inner = slice(1, max(len(starts) - 1, 1))
    sums = GroupPairs(own.positive[inner], own.negative[inner], own.pairs[inner]).sums(names[inner, 0], grouping.count)
    if dist.get_rank() == 0:
        sums += ends[1].sums(ends[0], grouping.count)
    return [GroupAucs.of(row) for row in gather_arrays(sums).sum(axis=0)]


def _ends(names: Ids, own: GroupPairs) -> tuple[Ids, GroupPairs]:
    """Slices of the first and last groups of all processes, and the groups, put together where processes share them."""
    places = [0, len(names) - 1] if len(names) > 1 else [0] * len(names)
    keys, values = np.zeros((2, 3), np.int64), np.zeros((2, 3))
    for row, place in enumerate(places):
        keys[row] = [1, *names[place]]
        values[row] = own.positive[place], own.negative[place], own.pairs[place]
    if len(names) == 1:
        keys[1, 0] = 0
    there = gather_arrays(keys).reshape(-1, 3)
    found = gather_arrays(values).reshape(-1, 3)
    slices: list[int] = []
    groups: list[list[float]] = []
    last: tuple[int, int] | None = None
    for (present, slice_of, group), (positive, negative, pairs) in zip(there.tolist(), found.tolist(), strict=True):
        if not present:
            continue
        if last == (slice_of, group):
            below = groups[-1][1]
            groups[-1][0] += positive
            groups[-1][1] += negative
            groups[-1][2] += pairs + positive * below
        else:
            last = slice_of, group
            slices.append(slice_of)
            groups.append([positive, negative, pairs])
    return np.array(slices, np.int64), GroupPairs(*np.array(groups, np.float64).reshape(-1, 3).T)
