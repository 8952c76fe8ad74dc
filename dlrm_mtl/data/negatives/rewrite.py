"""Batches in which rows are followed by rows with drawn items.

Every draw is a pure function of (seed, epoch, lane, number of the row in the lane's order of the epoch, number of the draw,
attempt), and of the training split or the lane's slice of the batch, as the law says: the same on any number of processes, and
after resuming.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import Split
from dlrm_mtl.data.decode import ABSENT, Array, Lists
from dlrm_mtl.data.negatives.known_pairs import Ids, KnownPairs
from dlrm_mtl.data.negatives.samplers import NONE, Choice, FromBatch, FromSplit, RowsToServe
from dlrm_mtl.data.negatives.statistics import ItemStatistics, read_statistics, take
from dlrm_mtl.data.spec import DatasetSpec


class Negatives:
    """Lets every row of a batch be followed by rows with drawn items, ``each`` of them.

    Args:
        spec: of the data set.
        config: with ``negatives``.
        labels: names of the labels, as for the batches' reader.
        statistics: of the whole training split, see :func:`~dlrm_mtl.data.negatives.statistics.read_statistics`.
        seed: other seeds give other draws.
    """

    def __init__(
        self, spec: DatasetSpec, config: DataConfig, labels: Sequence[str], statistics: ItemStatistics, seed: int = 0
    ) -> None:
        negatives = config.negatives
        assert negatives is not None
        selection = select(spec, config, labels)
        self.each = negatives.each
        """Rows that follow every row."""
        known = KnownPairs(statistics.pairs) if negatives.known == "avoid" else None
        exponent = negatives.exponent if negatives.by == "popularity" else 0.0
        self._choice: Choice = FromBatch(seed, known)
        self._catalogue: _Catalogue | None = None
        if negatives.counts_items:
            self._choice = FromSplit(statistics.items, statistics.counts, exponent, seed, known)
            self._catalogue = _Catalogue(negatives.item, statistics)
        keys, changing = selection.keys, {negatives.item, *negatives.along}
        self._item = keys.index(negatives.item)
        self._user = keys.index(negatives.user) if known is not None and negatives.user is not None else None
        self._changing = {place: key for place, key in enumerate(keys) if key in changing}
        self._changing_dense = {
            place: feature.name for place, feature in enumerate(selection.dense) if feature.name in changing
        }
        self._binary = np.array([label.kind == "binary" for label in selection.labels])  # [L]

    @classmethod
    def of(cls, split: Split, config: DataConfig, labels: Sequence[str], seed: int = 0) -> Negatives:
        """Negatives for the training split ``split``, which is read once where what is drawn depends on all of it.

        Raises:
            UserError: `data.negatives` does not fit the data set, or a value cannot be used.
        """
        return cls(split.spec, config, labels, read_statistics(split, config, labels), seed)

    def __call__(self, batch: Batch, lanes: Sequence[int], epoch: int, step: int) -> Batch:
        """Return B (1 + each) rows for the B rows of ``batch``: every row, then its negatives.

        A row with a positive binary label that counts has negatives. They have the row's features but for the item and what
        goes along with it; labels 0; and the row's weights for binary labels, 0 for others. Rows that have no negatives, and
        those for which no item is left, are followed by rows of weight zero with empty features.

        Args:
            batch: equal slices of ``lanes``, one after the other.
            lanes: their numbers, which follow each other.
            epoch: of the batch.
            step: of the batch in the epoch.
        """
        with record_function("## data: negatives ##"):
            chosen = self._chosen(batch, lanes, epoch, step)
            labels, weights = batch.labels.numpy(), batch.weights.numpy()
            counts = self._binary & (chosen != NONE)[:, :, None]  # [B, each, L]
            return Batch(
                sparse=self._sparse(batch, chosen),
                dense=self._dense(batch.dense.numpy(), chosen),
                labels=_rows(labels[:, None], np.zeros(counts.shape, labels.dtype)),
                weights=_rows(weights[:, None], weights[:, None] * counts),
            )

    def _chosen(self, batch: Batch, lanes: Sequence[int], epoch: int, step: int) -> Ids:
        """[B, each] the number of an item of the catalogue, or of a row of the batch; or :data:`NONE`."""
        chosen = np.full((batch.size, self.each), NONE)
        observed = (batch.labels.numpy() > 0) & (batch.weights.numpy() > 0) & self._binary
        per_lane = batch.size // len(lanes)
        rows = RowsToServe(
            items=_single_ids(batch, self._item),
            users=None if self._user is None else _single_ids(batch, self._user),
            first_lane=lanes[0],
            per_lane=per_lane,
            step=step,
            epoch=epoch,
            wanted=np.flatnonzero(observed.any(axis=1)),
        )
        chosen[rows.wanted] = self._choice.draw(rows, self.each)
        return chosen

    def _sparse(self, batch: Batch, chosen: Ids) -> KeyedJaggedTensor:
        """The lists of ids are numbered, first those of the batch, key by key, then those of drawn items, last an empty one."""
        keys, size = batch.sparse.keys(), batch.size
        drawn = (
            [] if self._catalogue is None else [self._catalogue.lists(name, chosen) for name in self._changing.values()]
        )
        values = [batch.sparse.values(), *(torch.from_numpy(lists.values) for lists in drawn)]
        lengths = [batch.sparse.lengths(), *(torch.from_numpy(np.diff(lists.offsets)).int() for lists in drawn)]
        empty = len(keys) * size + len(drawn) * chosen.size
        index: Array = np.empty((len(keys), size, 1 + self.each), np.int32)
        index[:] = np.arange(len(keys) * size).reshape(len(keys), size, 1)
        extra = len(keys) * size
        for place in self._changing:
            if self._catalogue is None:
                index[place, :, 1:] = place * size + chosen
            else:
                index[place, :, 1:] = extra + np.arange(chosen.size).reshape(chosen.shape)
                extra += chosen.size
        index[:, :, 1:][:, chosen == NONE] = empty
        # TorchRec's own operator, which gathers lists, also several times the same one.
        new_lengths, new_values, _ = torch.ops.fbgemm.permute_1D_sparse_data(
            torch.from_numpy(index.reshape(-1)),
            torch.cat([*lengths, torch.zeros(1, dtype=torch.int32)]),
            torch.cat(values),
            None,
            None,
        )
        stride = size * (1 + self.each)
        return KeyedJaggedTensor(keys, new_values, lengths=new_lengths, stride=stride)

    def _dense(self, dense: NDArray[np.float32], chosen: Ids) -> Tensor:
        found = chosen != NONE
        drawn = dense[:, None] * found[:, :, None]  # [B, each, D]
        for place, name in self._changing_dense.items():
            source = dense[:, place] if self._catalogue is None else self._catalogue.dense[name]
            drawn[found, place] = source[chosen[found]]
        return _rows(dense[:, None], drawn)


class _Catalogue:
    """What belongs to the items of the training split."""

    def __init__(self, item: str, statistics: ItemStatistics) -> None:
        self.dense = statistics.along_dense
        ids = Lists(statistics.items, np.arange(len(statistics.items) + 1))
        # One empty list more, for draws that find nothing: number NONE is the last one.
        self._lists = {
            name: Lists(lists.values, np.append(lists.offsets, lists.offsets[-1]))
            for name, lists in {item: ids, **statistics.along}.items()
        }

    def lists(self, name: str, chosen: Ids) -> Lists:
        """The ids of a feature of the items number ``chosen``, in order."""
        lists = self._lists[name]
        return take(lists, chosen.reshape(-1) % (len(lists.offsets) - 1))


def _single_ids(batch: Batch, place: int) -> Ids:
    """The ids of a feature that has at most one in a row, [B]; :data:`ABSENT` where it has none."""
    lengths = batch.sparse.lengths().view(-1, batch.size)
    first = int(lengths[:place].sum())
    there = lengths[place].numpy() > 0
    ids = np.full(batch.size, ABSENT, dtype=np.int64)
    ids[there] = batch.sparse.values().numpy()[first : first + int(there.sum())]
    return ids


def _rows(own: Array, drawn: Array) -> Tensor:
    """[B, 1, n] and [B, each, n] as rows [B (1 + each), n]."""
    joined = np.concatenate([own, drawn], axis=1)
    return torch.from_numpy(joined.reshape(joined.shape[0] * joined.shape[1], joined.shape[2]))
