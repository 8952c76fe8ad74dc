"""The rank of the matrix of scores, with and without biases, and what a bias of the user changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.checkpoint.reader import Target
from dlrm_mtl.metrics.ranking import NO_POSITIONS, Positions, mrr, positions
from dlrm_mtl.run.inspect_checkpoints import open_checkpoints

Matrix = NDArray[np.float64]


def tables_of(run: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Users [U, d], items [I, d] and biases [I] of the factorisation, float32, from the latest checkpoint of a run."""
    checkpoints = open_checkpoints(run)
    opened = checkpoints.open(checkpoints.find("latest"))
    found = []
    for name in ("user", "item", "bias_item"):
        whole = torch.empty(opened.index.tensors[f"tables.{name}"].shape)
        opened.reader.fill([Target(f"tables.{name}", whole, (0, 0))])
        found.append(whole)
    user, item, bias = found
    return user, item, bias[:, 0]


def ranks(user: Tensor, item: Tensor, bias: Tensor, user_bias: Tensor) -> dict[str, int]:
    """Numerical ranks of the scores of all users and items, in double precision."""
    product = (user.double() @ item.double().T).numpy()
    with_items = product + bias.double().numpy()
    found = {
        "u q": product,
        "u q + b": with_items,
        "u q + b + a": with_items + user_bias.double().numpy()[:, None],
    }
    return {name: int(np.linalg.matrix_rank(matrix)) for name, matrix in found.items()}


def pairs_of(folder: Path) -> NDArray[np.int64]:
    """Users and items [2, N] of the rows of a split."""
    table = pq.read_table(folder, columns=["user", "item"])
    return np.stack([table["user"].to_numpy(), table["item"].to_numpy()]).astype(np.int64)


def mean_reciprocal_rank(scores: Matrix, train: NDArray[np.int64], test: NDArray[np.int64]) -> float:
    """The assignment's metric of the scores [U, I]: items of the user's training rows, and id 0, are no candidates."""
    found = [NO_POSITIONS]
    for user in np.unique(test[0]):
        own = scores[user].copy()
        own[0] = -np.inf
        found.append(positions(int(user), own, test[1][test[0] == user], train[1][train[0] == user]))
    return mrr(
        Positions(*(np.concatenate([getattr(part, key) for part in found]) for key in ("user", "above", "tied")))
    )


def largest_gradient(user: Tensor, item: Tensor, bias: Tensor, user_bias: Tensor, pairs: NDArray[np.int64]) -> float:
    """Largest derivative of the ranking loss with respect to a bias of a user, one uniform negative a pair."""
    a = user_bias.double().requires_grad_()
    users, items = torch.from_numpy(pairs)
    drawn = torch.randint(len(item), (len(items),), generator=torch.Generator().manual_seed(0))

    def scores(chosen: Tensor) -> Tensor:
        return (user[users].double() * item[chosen].double()).sum(1) + bias[chosen].double() + a[users]

    margin = scores(items) - scores(drawn)
    (1 - torch.sigmoid(margin)).mean().backward()
    assert a.grad is not None
    return float(a.grad.abs().max())


def measure(run: Path, data: Path) -> dict[str, Any]:
    """Ranks, and what a random bias of the users does to loss and metric, for the tables of a run."""
    user, item, bias = tables_of(run)
    user_bias = torch.randn(len(user), generator=torch.Generator().manual_seed(1))
    train, test = (pairs_of(data / split) for split in ("train", "test"))
    scores: Matrix = (user.double() @ item.double().T + bias.double()).numpy()
    moved = scores + user_bias.double().numpy()[:, None]
    found: Mapping[str, Any] = {
        "dim": user.shape[1],
        "ranks": ranks(user[1:], item[1:], bias[1:], user_bias[1:]),
        "mrr": mean_reciprocal_rank(scores, train, test),
        "mrr with a": mean_reciprocal_rank(moved, train, test),
        "largest gradient of a": largest_gradient(user, item, bias, user_bias, train),
    }
    return dict(found)
