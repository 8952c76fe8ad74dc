"""Unbounded ids in a sharded model: every batch's ids become rows, and new ids get rows in training.

A map from ids to rows (:class:`~dlrm_mtl.embeddings.unbounded.row_map.RowSlots`) is spread over the processes by a hash of
the id. Each process asks the owners for the rows of its part of the batch. Owners see all ids of the global batch together.
So their decisions depend only on the global batches, and not on the number of processes or the sharding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.core.phases import phase
from dlrm_mtl.embeddings.torchrec.compat import (
    ShardedTensor,
    ShardedTensorMetadata,
    ShardMetadata,
    TensorProperties,
    TensorShard,
    sharded_tensor,
)
from dlrm_mtl.embeddings.unbounded.row_map import Eviction, RowSlots
from dlrm_mtl.embeddings.unbounded.row_resets import RowResets


@dataclass
class Vocabulary:
    """Unbounded ids, and the tables that have a row for each."""

    rows: int
    """Number of rows of the tables."""
    eviction: Eviction
    """Eviction rule, see :class:`~dlrm_mtl.embeddings.unbounded.row_map.RowSlots`."""
    features: set[str] = field(default_factory=set)
    """Names of the features with such ids."""
    tables: set[str] = field(default_factory=set)
    """Names of the tables."""


class UnboundedIds:
    """Map of ids to rows of tables. Ids without a row become row 0, the row of id 0.

    Between :meth:`begin` and :meth:`end`, ids without a row get one if possible; otherwise nothing changes.

    Args:
        vocabularies: vocabularies by name.
        device: device of the ids.
    """

    def __init__(self, vocabularies: Mapping[str, Vocabulary], device: torch.device) -> None:
        self.vocabularies = dict(vocabularies)
        self.device = device
        self._rank, self._processes = dist.get_rank(), dist.get_world_size()
        self._devices = [str(device)] * self._processes
        if self.vocabularies:
            dist.all_gather_object(self._devices, str(device))
        self.slots = {
            name: RowSlots(vocabulary.rows, vocabulary.eviction, self._rank, self._processes, device)
            for name, vocabulary in vocabularies.items()
        }
        self.figures: dict[str, float] = {}
        """Scalars of the last step, for a log: ids that got a row, and ids that were evicted."""
        self._resets: RowResets | None = None
        self._step = 0

    def connect(self, resets: RowResets) -> None:
        """Set the resets of rows that change owners; without it, no id gets a row."""
        self._resets = resets

    def begin(self, step: int) -> None:
        """Start giving rows to new ids; ``step`` counts from 0."""
        self._step = step + 1
        self.figures = {f"ids/{name}/{what}": 0.0 for name in self.vocabularies for what in ("admitted", "evicted")}

    def end(self, keep: bool) -> None:
        """Stop giving rows to new ids; unless ``keep``, undo everything since :meth:`begin`."""
        self._step = 0
        parts: list[RowSlots | RowResets] = [*self.slots.values(), *([self._resets] if self._resets else [])]
        for part in parts:
            if keep:
                part.keep()
            else:
                part.undo()

    @torch.no_grad()
    def __call__(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The same bags with rows for ids. Every process must call this."""
        if not self.vocabularies:
            return sparse
        with phase("rows of ids"):
            ends = sparse.offset_per_key()
            spans = dict(zip(sparse.keys(), pairwise(ends), strict=True))
            values = sparse.values().clone()
            found, asked = [], []
            for vocabulary in self.vocabularies.values():
                own = [slice(*span) for name, span in spans.items() if name in vocabulary.features]
                ids, inverse = torch.cat([values[:0], *(values[span] for span in own)]).unique(return_inverse=True)
                asked.append(ids)
                found.append((own, inverse))
            for (own, inverse), rows in zip(found, self._rows(asked), strict=True):
                parts = rows[inverse].split([span.stop - span.start for span in own]) if own else ()
                for span, part in zip(own, parts, strict=True):
                    values[span] = part
            return KeyedJaggedTensor(
                keys=sparse.keys(),
                values=values,
                lengths=sparse.lengths(),
                weights=sparse.weights_or_none(),
                stride=sparse.stride(),
            )

    def _rows(self, asked: list[Tensor]) -> list[Tensor]:
        """Rows of the distinct ids [N] of each vocabulary; every process asks for its own."""
        slots = list(self.slots.values())
        count = len(slots)
        targets = torch.cat(
            [own.owners(ids) * count + n for n, (own, ids) in enumerate(zip(slots, asked, strict=True))]
        )
        order = targets.argsort(stable=True)  # by process, and then by vocabulary
        sent = targets.bincount(minlength=self._processes * count).view(self._processes, count)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        to, from_ = sent.sum(dim=1).tolist(), received.sum(dim=1).tolist()
        ids = torch.cat(asked)[order]
        questions = ids.new_empty(sum(from_))
        dist.all_to_all_single(questions, ids, from_, to)
        which = torch.arange(count, device=ids.device).repeat(self._processes).repeat_interleave(received.flatten())
        answers = torch.empty_like(questions)
        given = []
        for number, own in enumerate(slots):
            mine = which == number
            each, inverse = questions[mine].unique(return_inverse=True)
            if self._step and self._resets:
                rows, newcomers = own.admit(each, self._step)
                given.append((number, newcomers))
            else:
                rows = own.find(each)
            answers[mine] = rows[inverse]
        rows = torch.empty_like(ids)
        dist.all_to_all_single(rows, answers, to, from_)
        if self._step and self._resets:
            news = [
                torch.stack([torch.full_like(new.rows, number), new.rows, new.ids, new.evicted])
                for number, new in given
            ]
            self._reset(torch.cat(news, dim=1), self._resets)
        result = torch.empty_like(rows)
        result[order] = rows
        return list(result.split([len(ids) for ids in asked]))

    def _reset(self, news: Tensor, resets: RowResets) -> None:
        """Reset rows that changed owners on any process; [4, n]: vocabulary, row, id, and 1 if another id had the row."""
        counts = [news.new_empty(1) for _ in range(self._processes)]
        dist.all_gather(counts, news.new_tensor([news.shape[1]]))
        sizes = [int(size) for size in counts]
        if not any(sizes):
            return
        padded = torch.nn.functional.pad(news, (0, max(sizes) - news.shape[1]))
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        everywhere = torch.cat([part[:, :size] for part, size in zip(gathered, sizes, strict=True)], dim=1)
        for number, (name, vocabulary) in enumerate(self.vocabularies.items()):
            _, rows, ids, evicted = everywhere[:, everywhere[0] == number]
            resets(vocabulary.tables, rows, ids)
            self.figures[f"ids/{name}/admitted"] += len(rows)
            self.figures[f"ids/{name}/evicted"] += float(evicted.sum())

    def state(self) -> dict[str, dict[str, ShardedTensor]]:
        """Maps by vocabulary: ``ids``, ``last_used`` and ``batches`` [rows] of whole tables; loading fills the live tensors."""
        keys = ("ids", "last_used", "batches")
        return {name: {key: self._sharded(getattr(own, key), own) for key in keys} for name, own in self.slots.items()}

    def _sharded(self, tensor: Tensor, own: RowSlots) -> ShardedTensor:
        parts = [
            ShardMetadata([first], [stop - first], f"rank:{rank}/{self._devices[rank]}")
            for rank, (first, stop) in enumerate(own.ranges())
            if stop > first
        ]
        local = [TensorShard(tensor, part) for part in parts if part.shard_offsets[0] == own.first_row and len(tensor)]
        whole = ShardedTensorMetadata(parts, torch.Size([own.rows]), TensorProperties(dtype=tensor.dtype))
        return sharded_tensor(local, whole)
