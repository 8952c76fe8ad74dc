"""Metrics of ranking all items for each user, exact: tied items count as the average over all their orders.

The candidates of a user are all items except those the user has seen before. Targets, the items to find again, are always
candidates. Shapes: P pairs of a user and a target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.registry import register

Array = NDArray[np.float64]
Ids = NDArray[np.int64]

CUTOFFS = (10, 20)
"""Cutoffs k of the metrics at k."""


@dataclass(frozen=True)
class Positions:
    """Positions of targets among the candidates of their users."""

    user: Ids
    """[P], an arbitrary number of the user; a target counts once for each user."""
    above: Ids
    """[P], number of candidates with a higher score than the target."""
    tied: Ids
    """[P], number of candidates with the same score, including the target."""

    def __add__(self, other: Positions) -> Positions:
        """Concatenate the pairs."""
        pairs = zip((self.user, self.above, self.tied), (other.user, other.above, other.tied), strict=True)
        return Positions(*(np.concatenate(pair) for pair in pairs))


NO_POSITIONS = Positions(*(np.empty(0, np.int64) for _ in range(3)))


def positions(user: int, scores: Array, targets: Ids, seen: Ids) -> Positions:
    """Positions of ``targets`` for one user.

    Args:
        user: number of the user.
        scores: [I], scores of all items; -inf for an item that is not a candidate.
        targets: items to find, each once.
        seen: items left out of the ranking, unless they are targets.
    """
    targets = np.unique(targets)
    left = scores.copy()
    left[seen] = -np.inf
    left[targets] = scores[targets]
    ordered = np.sort(left[left > -np.inf])
    own = scores[targets]
    above = len(ordered) - np.searchsorted(ordered, own, side="right")
    tied = len(ordered) - np.searchsorted(ordered, own, side="left") - above
    return Positions(np.full(len(targets), user), above.astype(np.int64), tied.astype(np.int64))


@register("metric", "mrr", kinds={"ranking": 10}, heading="MRR", of_positions=True)
def mrr(found: Positions) -> float:
    """Mean reciprocal rank: 1 / rank of each target, tied ones at their mean rank, averaged by user, then over users."""
    return _over_users(found, 1.0 / (found.above + (found.tied + 1) / 2.0), mean=True)


def recall(found: Positions, k: int) -> float:
    """Fraction of a user's targets among the first k, averaged over users."""
    return _over_users(found, _in_first(found, k), mean=True)


def precision(found: Positions, k: int) -> float:
    """Fraction of targets in the first k places, averaged over users."""
    return _over_users(found, _in_first(found, k) / k, mean=False)


def ndcg(found: Positions, k: int) -> float:
    """Sum of 1 / log2(1 + rank) over the targets among the first k, divided by its maximum, averaged over users."""
    if not len(found.user):
        return float("nan")
    discounts = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])  # [k + 1], of the first n places
    first, last = np.minimum(found.above, k), np.minimum(found.above + found.tied, k)
    gains = (discounts[last] - discounts[first]) / found.tied
    _, users, counts = np.unique(found.user, return_inverse=True, return_counts=True)
    return float(np.mean(np.bincount(users, gains) / discounts[np.minimum(counts, k)]))


def _in_first(found: Positions, k: int) -> Array:
    """[P], fraction of the orders of tied items in which the target is among the first k."""
    inside: Array = np.clip(k - found.above, 0, found.tied) / found.tied
    return inside


def _over_users(found: Positions, values: Array, mean: bool) -> float:
    if not len(found.user):
        return float("nan")
    _, users, counts = np.unique(found.user, return_inverse=True, return_counts=True)
    sums = np.bincount(users, values)
    return float(np.mean(sums / counts if mean else sums))


def all_metrics(found: Positions, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """`mrr`, and `ndcg@k`, `recall@k` and `precision@k` for every k; nan without a target."""
    result = {"mrr": mrr(found)}
    for k in cutoffs:
        result |= {f"ndcg@{k}": ndcg(found, k), f"recall@{k}": recall(found, k), f"precision@{k}": precision(found, k)}
    return result


def _at(metric: Callable[[Positions, int], float], k: int) -> Callable[[Positions], float]:
    @wraps(metric)
    def at_k(found: Positions) -> float:
        return metric(found, k)

    return at_k


for _place, _k in enumerate(CUTOFFS, 1):
    for _number, (_metric, _heading) in enumerate(((ndcg, "NDCG"), (recall, "rec"), (precision, "prec"))):
        register(
            "metric",
            f"{_metric.__name__}@{_k}",
            kinds={"ranking": 10 + 10 * _place + _number},
            heading=f"{_heading}@{_k}",
            of_positions=True,
        )(_at(_metric, _k))
