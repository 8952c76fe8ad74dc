"""Batches in which rows with drawn items follow each row.

Every draw is a pure function of (seed, epoch, lane, number of the row in the lane's order of the epoch, number of the draw,
attempt), and of the training split or the lane's slice of the batch, depending on the distribution. It is therefore the
same on any number of processes, and after resuming.
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
    """Rewriter of batches: each row is followed by ``each`` rows with drawn items.

    Args:
        spec: description of the data set.
        config: configuration with ``negatives``.
        labels: names of the labels, as for the batches' reader.
        statistics: statistics of the whole training split, see :func:`~dlrm_mtl.data.negatives.statistics.read_statistics`.
        seed: seed of the draws.
    """

    def __init__(
        self, spec: DatasetSpec, config: DataConfig, labels: Sequence[str], statistics: ItemStatistics, seed: int = 0
    ) -> None:
        negatives = config.negatives
        assert negatives is not None
        selection = select(spec, config, labels)
        self.each = negatives.each
        """Number of rows that follow every row."""
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
        """Negatives for the training split ``split``, which is read once if the distribution or the known pairs depend on it.

        Raises:
            UserError: `data.negatives` does not fit the data set, or a value cannot be used.
        """
        return cls(split.spec, config, labels, read_statistics(split, config, labels), seed)

    def __call__(self, batch: Batch, lanes: Sequence[int], epoch: int, step: int) -> Batch:
        """Return B (1 + each) rows for the B rows of ``batch``: every row, then its negatives.

        A row has negatives if it has a positive binary label of positive weight. They have the row's features except the
        item and those along with it; labels 0; and the row's weights for binary labels, 0 for others. Rows without
        negatives, and those for which no item is left, are followed by rows of weight zero with empty features.

        Args:
            batch: equal slices of ``lanes``, concatenated.
            lanes: consecutive lane numbers.
            epoch: epoch of the batch.
            step: step of the batch in the epoch.
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
        """Choices [B, each]: numbers of items in the catalogue, or of rows of the batch; :data:`NONE` if there is none."""
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
        """Features of all rows.

        Lists of ids are numbered: those of the batch, key by key, then those of drawn items, then an empty one.
        """
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
        # TorchRec's operator gathers lists, and may take one several times.
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
    """Features of the items of the training split."""

    def __init__(self, item: str, statistics: ItemStatistics) -> None:
        self.dense = statistics.along_dense
        ids = Lists(statistics.items, np.arange(len(statistics.items) + 1))
        # One extra empty list for draws that find nothing: index NONE is the last one.
        self._lists = {
            name: Lists(lists.values, np.append(lists.offsets, lists.offsets[-1]))
            for name, lists in {item: ids, **statistics.along}.items()
        }

    def lists(self, name: str, chosen: Ids) -> Lists:
        """Ids of one feature of the items number ``chosen``, in order."""
        lists = self._lists[name]
        return take(lists, chosen.reshape(-1) % (len(lists.offsets) - 1))


def _single_ids(batch: Batch, place: int) -> Ids:
    """Ids of a feature with at most one id in a row, [B]; :data:`ABSENT` for rows without one."""
    lengths = batch.sparse.lengths().view(-1, batch.size)
    first = int(lengths[:place].sum())
    there = lengths[place].numpy() > 0
    ids = np.full(batch.size, ABSENT, dtype=np.int64)
    ids[there] = batch.sparse.values().numpy()[first : first + int(there.sum())]
    return ids


def _rows(own: Array, drawn: Array) -> Tensor:
    """Concatenate [B, 1, n] and [B, each, n] to rows [B (1 + each), n]."""
    joined = np.concatenate([own, drawn], axis=1)
    return torch.from_numpy(joined.reshape(joined.shape[0] * joined.shape[1], joined.shape[2]))
