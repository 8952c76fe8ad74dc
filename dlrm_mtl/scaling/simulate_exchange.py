"""Exchange of ids in a simulation: what all processes send to one of them, in the order that its sharded module expects.

Which features a process receives, and in which order, is TorchRec's affair and differs by sharding type. It is learnt from the
module itself: a small batch, whose bags spell the numbers of features in binary, is sent through the module's own exchange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.types import ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.keyed_ids import KeyedIds
from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.embeddings.torchrec.plan import Processes
from dlrm_mtl.models.feature_lookup import most_recent
from dlrm_mtl.scaling.simulate_group import answered_by
from dlrm_mtl.training.sharded_model import ShardedModel


@dataclass(frozen=True)
class Slot:
    """Ids that a process receives for one of its shards: those of a feature in a range of rows."""

    feature: str
    first: int
    """First row of the shard."""
    rows: int


class Received:
    """What process ``rank`` receives in the exchanges of ids of a step, in the order of the step.

    Args:
        model: its part of the model.
        plan: placement of the tables.
        layout: the processes.
        rank: number of the process.
        batches: global batch of the step, in micro-batches.
    """

    def __init__(
        self, model: ShardedModel, plan: ShardingPlan, layout: Processes, rank: int, batches: Sequence[Batch]
    ) -> None:
        self._rank, self._world = rank, layout.world_size
        lookup = model.ranker.lookup
        self._answers: list[list[Tensor]] = []
        ranges = _ranges(plan, lookup.table_set, rank)
        slots: dict[bool, list[list[Slot]]] = {}
        for batch in batches:
            ids: Any = model.ranker.ids(batch)
            for collection, unpooled in ((lookup.tables, False), (lookup.unpooled_tables, True)):
                if collection is None:
                    continue
                own = most_recent(ids, lookup.unpooled_features, lookup.table_set.lengths) if unpooled else ids
                if unpooled not in slots:
                    slots[unpooled] = _learn(collection, own.keys(), ranges, self._world, rank)
                parts = [self._parts(own, each) for each in slots[unpooled]]
                self._answers += [sizes for sizes, _, _ in parts]
                for _, lengths, values in parts:
                    self._answers += [lengths, values]

    def answer(self, sent: Tensor, sizes: list[int]) -> list[Tensor] | None:
        """The parts that all processes send to this one; None for all but the exchanges of ids.

        Raises:
            AssertionError: this process does not send itself what it should.
        """
        if sent.is_floating_point():
            return None
        parts = self._answers.pop(0)
        own = (sent.split(sizes) if sizes else sent.chunk(self._world))[self._rank]
        assert torch.equal(own, parts[self._rank]), "the exchange of ids has another order than was learnt"
        return parts

    def _parts(self, ids: KeyedIds, slots: Sequence[Slot]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Sizes, lengths and values of one sharding's exchange, by sender."""
        world, rows = self._world, ids.stride() // self._world
        lengths = np.zeros((world, len(slots), rows), dtype=np.int32)
        values, senders, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for place, slot in enumerate(slots):
            feature = ids[slot.feature]
            known = feature.values().numpy() - slot.first
            inside = (known >= 0) & (known < slot.rows)
            row = np.repeat(np.arange(ids.stride()), feature.lengths().numpy())[inside]
            values.append(known[inside])
            senders.append(row // rows)
            places.append(np.full(len(row), place))
            lengths[:, place, :] = np.bincount(row, minlength=ids.stride()).reshape(world, rows)
        sender = np.concatenate(senders)
        # Slot by slot within a sender; the rows of a slot are in order already.
        order = np.argsort(sender * max(len(slots), 1) + np.concatenate(places), kind="stable")
        counts = np.bincount(sender, minlength=world)
        sizes = np.stack([np.full(world, len(slots) * rows), counts, np.full(world, rows)], axis=1)
        sorted_values = torch.from_numpy(np.concatenate(values)[order])
        return (
            list(torch.from_numpy(sizes).unbind()),
            list(torch.from_numpy(lengths).flatten(1).unbind()),
            list(sorted_values.split(counts.tolist())),
        )


def _ranges(plan: ShardingPlan, tables: TableSet, rank: int) -> dict[str, tuple[int, int]]:
    """First row and number of rows of the shard of process ``rank`` that each feature is looked up in, by feature.

    Raises:
        UserError: a feature is looked up in two tables whose shards hold different rows.
    """
    found: dict[str, tuple[int, int]] = {}
    features = {table.name: table.feature_names for table in tables.configs}
    for module in plan.plan.values():
        for name, sharding in module.items():  # type: ignore[attr-defined]
            for shard in sharding.sharding_spec.shards if sharding.sharding_spec else ():
                if shard.placement.rank() != rank:
                    continue
                own = (shard.shard_offsets[0], shard.shard_sizes[0])
                for feature in features[name]:
                    if found.setdefault(feature, own) != own:
                        raise UserError(
                            f"sharding: feature {feature} is looked up in several tables, and those shards of process {rank} "
                            "hold different rows, which a simulation cannot tell apart; choose one sharding type for these "
                            "tables."
                        )
    return found


def _learn(
    collection: Any, features: list[str], ranges: Mapping[str, tuple[int, int]], world: int, rank: int
) -> list[list[Slot]]:
    """Slots of process ``rank`` in each exchange of ``collection``, in order.

    The module remembers the order of ``features``, which must be that of its batches.

    In bit k of the number of a feature, counted from 1, row k of the batch has one id for it: the first row of the shard.
    """
    bits = len(features).bit_length()
    spelled = (np.arange(1, len(features) + 1)[:, None] >> np.arange(bits)) & 1  # [features, bits]
    first = np.array([ranges.get(name, (0, 0))[0] for name in features])
    values = np.repeat(np.repeat(first, bits), spelled.reshape(-1))
    probe = KeyedJaggedTensor(
        features, torch.from_numpy(values), lengths=torch.from_numpy(spelled.reshape(-1).astype(np.int32)), stride=bits
    )
    found: list[list[Slot]] = []

    def keep(sent: Tensor, sizes: list[int]) -> None:
        if not sizes or sent.dtype != torch.int32:
            return  # sizes of later exchanges, or values
        spelling = sent.split(sizes)[rank].view(-1, bits).numpy()
        numbers = (spelling << np.arange(bits)).sum(axis=1) - 1
        # A shard without rows gets no id, of whatever feature.
        known = [(features[number], number) for number in numbers.tolist()]
        found.append([Slot(name, *ranges[name]) if number >= 0 else Slot(name, 0, 0) for name, number in known])

    with answered_by(keep):
        # The second wait() would unpack what has arrived.
        collection.input_dist(collection.create_context(), probe).wait()
    return found
