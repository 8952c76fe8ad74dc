"""Factorisation and regression on the same users and items: the model of Stanford's CS330 (2023), homework 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dlrm_mtl.core.parts import Misfit, RunConfigLike
from dlrm_mtl.core.registry import register
from dlrm_mtl.data.keyed_ids import KeyedIds, like
from dlrm_mtl.embeddings.tables import TableSet, padded
from dlrm_mtl.models.base import ModelInputs, RankingModel, RankingModelConfig
from dlrm_mtl.models.blocks import MLP, ParallelLinear, StackConfig
from dlrm_mtl.models.classical.user_item import check_pair, vectors
from dlrm_mtl.models.dropout import LaneNegatives
from dlrm_mtl.tasks.products import own_tasks
from dlrm_mtl.tasks.ranking import margin

if TYPE_CHECKING:
    from dlrm_mtl.data.keyed_ids import ModelBatch


class MultitaskNetConfig(RankingModelConfig):
    """Users and items only: a factorisation scores them for ranking tasks, layers over both predict all other labels."""

    draws_items: ClassVar[bool] = True
    name: Literal["multitask_net"] = "multitask_net"
    """Name of this model."""
    user: str
    """Name of the feature that holds the user."""
    item: str
    """Name of the feature that holds the item. The model uses no other feature."""
    dim: int = Field(default=32, gt=0, multiple_of=4)
    """Number of columns of the tables; a multiple of 4."""
    embeddings: Literal["shared", "separate"] = "shared"
    """`shared`: factorisation and regression share their tables; `separate`: each has its own."""
    init_std: float | None = Field(default=None, ge=0)
    """Standard deviation of the initial weights of the tables (normal, mean 0). Default: 1 / dim."""
    regression: StackConfig = StackConfig(layers=[64])
    """Layers between the vectors and the predictions of tasks without a ranking loss."""

    def check(self, run: RunConfigLike) -> None:
        """Refuse tasks without a ranking loss among them, and ids without a vocabulary."""
        if not any(run.tasks[number].kind == "ranking" for number in own_tasks(run.tasks)):
            raise Misfit(
                "multitask_net needs a task with a ranking loss, such as bpr, and finds none; give one task such a loss, or "
                "choose another model.",
                "tasks",
                root=True,
            )
        if run.data.unbounded:
            raise Misfit(
                "multitask_net draws and ranks items by their numbers, so its ids need vocabularies; remove the key, or "
                "choose another model.",
                "data.unbounded",
                root=True,
            )


@register("model", "multitask_net", config=MultitaskNetConfig, order=50)
class MultitaskNet(RankingModel):
    """p = <u, q> + b_item for tasks with a ranking loss; r = W2 relu(W1 [u, q, u * q] + c1) + c2 for the others.

    In training the "logit" of a ranking task is the margin of p over the scores of drawn items; otherwise it is p itself.
    Items are drawn for every row at every step, uniformly from all ids of the item's vocabulary, and may be items that the
    user has seen. Vectors start from N(0, std^2) with std = 1 / d, item biases from 0, layers as ``nn.Linear`` does.

    The biases are a table of one column, stored with three unused ones, as FBGEMM needs a multiple of 4.

    Parameters with U users, I items, layers h and R tasks without a ranking loss: (U + I) d + I + P(3 d; h) + R (h[-1] + 1),
    with separate embeddings (U + I) d more, where P counts a stack with biases.
    """

    def __init__(self, config: MultitaskNetConfig, inputs: ModelInputs) -> None:
        check_pair(config.user, config.item, list(inputs.sparse))
        tasks = inputs.own_tasks
        ranking = [task for task in tasks if task.kind == "ranking"]
        counts = [getattr(task.loss, "negatives", 0) for task in tasks]
        count = max(counts)
        drawn = [f"{config.item}/negative_{number}" for number in range(count)]
        items, bias = [config.item, *drawn], f"bias_{config.item}"
        separate = config.embeddings == "separate" and len(ranking) < len(tasks)
        prefix = "factorisation_" if separate else ""
        tables = [
            vectors(f"{prefix}{config.user}", inputs.spec, [config.user], config.dim),
            vectors(f"{prefix}{config.item}", inputs.spec, items, config.dim),
            vectors(bias, inputs.spec, items, padded(1)),
        ]
        if separate:
            tables += [
                vectors(f"regression_{name}", inputs.spec, [name], config.dim) for name in (config.user, config.item)
            ]
        std = 1.0 / config.dim if config.init_std is None else config.init_std
        stds = {table.name: 0.0 if table.name == bias else std for table in tables}
        super().__init__(TableSet(tables, stds, padding={bias: padded(1) - 1}), inputs.tasks)
        self.user, self.item, self.drawn, self.dim = config.user, config.item, drawn, config.dim
        self.items = inputs.spec.vocabulary_size(config.item)
        """Number of items; their ids run from 0 to items - 1."""
        self.negatives = LaneNegatives(self.items, count)
        self.is_ranking = [task.kind == "ranking" for task in tasks]
        self.ranking_labels = [number for number, task in enumerate(inputs.tasks) if task.kind == "ranking"]
        self.counts = counts
        others = len(tasks) - len(ranking)
        self.regression = MLP(3 * config.dim, config.regression) if others else None
        self.predictions = ParallelLinear(1, self.regression.out_features, others) if self.regression else None

    def ids(self, batch: ModelBatch) -> KeyedIds:
        """User and item of each row and, in training, the items drawn for rows that a ranking task learns from."""
        user, item, rows = batch.sparse[self.user], batch.sparse[self.item], batch.sparse.stride()
        values, lengths = [user.values(), item.values()], [user.lengths(), item.lengths()]
        count = len(self.drawn)
        if self.training:
            observed = batch.labels[:, self.ranking_labels] * batch.weights[:, self.ranking_labels] > 0
            learns = observed.any(dim=1)
            values.append(self.negatives(rows, learns.device)[learns].T.flatten())
            lengths.append(learns.to(user.lengths().dtype).repeat(count))
        else:
            lengths.append(user.lengths().new_zeros(count * rows))
        keys = [self.user, self.item, *self.drawn]
        return like(batch.sparse, keys, values, lengths)

    def pair_scores(self) -> MultitaskNet:
        """The model itself: its factorisation is a product."""
        return self

    def vectors(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the factorisation for ids of users and items [n]: [n, d], [n, d] and biases [n, 1]."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        ones = torch.ones_like(users, dtype=torch.int32)
        none = ones.new_zeros(len(self.drawn) * len(ones))
        ids = KeyedJaggedTensor(
            keys=[self.user, self.item, *self.drawn],
            values=torch.cat([users, items]),
            lengths=torch.cat([ones, ones, none]),
            stride=len(ones),
        )
        user, item, *rest = self.lookup(ids).split(self.lookup.widths, dim=1)
        return user, item, rest[len(self.drawn)][:, :1]

    def own_logits(self, features: Tensor, dense: Tensor) -> Tensor:
        """Logits [B, O] of the tasks with their own logit; dense features are ignored."""
        user, *rest = features.split(self.lookup.widths, dim=1)
        count = 1 + len(self.drawn)
        items = torch.stack(rest[:count], dim=1)  # [B, 1 + N, d]
        biases = torch.stack(rest[count : 2 * count], dim=1)[:, :, 0]  # [B, 1 + N]
        scores = torch.bmm(items, user.unsqueeze(2)).squeeze(2) + biases
        predictions = self._regression(*(rest[2 * count :] or (user, items[:, 0])))
        columns = [
            self._ranking(scores, count) if ranking else next(predictions)
            for ranking, count in zip(self.is_ranking, self.counts, strict=True)
        ]
        return torch.stack(columns, dim=1)

    def _ranking(self, scores: Tensor, count: int) -> Tensor:
        return margin(scores[:, 0], scores[:, 1 : 1 + count]) if self.training else scores[:, 0]

    def _regression(self, user: Tensor, item: Tensor) -> Iterator[Tensor]:
        if self.regression is None or self.predictions is None:
            return iter(())
        hidden = self.regression(torch.cat([user, item, user * item], dim=1))
        return iter(self.predictions(hidden.unsqueeze(1)).squeeze(1).unbind(dim=1))
