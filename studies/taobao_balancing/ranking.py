"""Ranking all items for users by the first task of a NeuMF, quickly.

Both first layers are linear in an item's vectors once the user is given, so that only what depends on both is computed per
pair: with vectors p, q of the product and p', q' below the layers, the first layer of the stack is A p' + B q' + b with B q'
computed once, and that of the tower C (p * q) + D h + c = (C diag(p)) q + D h + c.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.metrics.ranking import NO_POSITIONS, Positions, positions
from dlrm_mtl.models.blocks import ParallelLinear, ParallelMLP
from dlrm_mtl.models.classical.neumf import NeuMF
from dlrm_mtl.training.sharded_model import ShardedModel

Ids = NDArray[np.int64]

ROWS = 4096


def ids(users: Tensor, items: Tensor) -> KeyedJaggedTensor:
    """Pairs of a user and an item [B] as the model's features."""
    lengths = torch.ones(2 * len(users), dtype=torch.int32)
    return KeyedJaggedTensor(keys=["user", "item"], values=torch.cat([users, items]), lengths=lengths)


class Scorer:
    """A copy of the parameters that score items for the first task; later training steps do not change it.

    To be made on every process; each gets all parameters, for any sharding.

    Args:
        model: a NeuMF with ReLU activations and no norm.
        users: ids of users run from 0 to this less 1,
        items: and those of items.
    """

    @torch.no_grad()
    def __init__(self, model: ShardedModel, users: int, items: int) -> None:
        ranker = model.ranker
        assert isinstance(ranker, NeuMF)
        every = torch.arange(max(users, items))
        parts = [
            ranker.lookup(ids(part.clamp(max=users - 1), part.clamp(max=items - 1))).clone()
            for part in every.split(ROWS)
        ]
        user, item, deep_user, deep_item = torch.cat(parts).split(ranker.lookup.widths, dim=1)
        deep, tower = _first(ranker.deep.stack), _first(ranker.towers)
        logits = (ranker.logits.weight[0].clone(), ranker.logits.bias[0].clone())
        (weight, bias), self.deep = deep[0], deep[1:]
        of_user, of_item = weight.split([deep_user.shape[1], deep_item.shape[1]], dim=1)
        self.deep_user = F.linear(deep_user[:users], of_user, bias)  # [users, h]
        self.deep_item = F.linear(deep_item[:items], of_item)  # [items, h]
        (weight, self.bias), self.tower = tower[0], [*tower[1:], logits]
        self.of_product, self.of_deep = weight.split([user.shape[1], weight.shape[1] - user.shape[1]], dim=1)
        self.user, self.item = user[:users], item[:items].contiguous()

    @torch.no_grad()
    def scores(self, user: int) -> Tensor:
        """The logits [items] of the first task."""
        hidden = torch.relu(self.deep_user[user] + self.deep_item)
        for weight, bias in self.deep:
            hidden = torch.relu(F.linear(hidden, weight, bias))
        out = torch.addmm(self.bias, hidden, self.of_deep.T).addmm_(self.item, (self.of_product * self.user[user]).T)
        for weight, bias in self.tower:
            out = F.linear(torch.relu(out), weight, bias)
        return out.squeeze(1)


def rank(scorer: Scorer, seen: Ids, targets: Ids) -> Positions:
    """Positions of the held-out ``targets`` [N, 2] of users and items among all items without those in ``seen`` [M, 2].

    Id 0 stands for unknown users and items: it is never ranked, and targets with it are left out.
    """
    targets = targets[(targets > 0).all(axis=1)]
    seen = seen[np.argsort(seen[:, 0], kind="stable")]
    found = NO_POSITIONS
    parts = [found]
    for user in np.unique(targets[:, 0]).tolist():
        scores = scorer.scores(user).double().numpy()
        scores[0] = -np.inf
        first, last = np.searchsorted(seen[:, 0], [user, user + 1])
        parts.append(positions(user, scores, targets[targets[:, 0] == user, 1], seen[first:last, 1]))
    return Positions(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("user", "above", "tied")))


def _first(stack: ParallelMLP) -> list[tuple[Tensor, Tensor]]:
    """Copies of the weights and biases of the first of the parallel stacks."""
    layers = [layer for layer in stack.layers if isinstance(layer, ParallelLinear)]
    return [(layer.weight[0].clone(), layer.bias[0].clone()) for layer in layers]
