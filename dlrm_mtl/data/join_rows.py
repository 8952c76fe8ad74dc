"""Concatenation of rows of blocks into the tensors of a batch. Needs no TorchRec, so that serving can use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlrm_mtl.data.decode import ABSENT, Array, DecodedBlock, Lists, id_dtype
from dlrm_mtl.data.file_checks import Layout


@dataclass
class BlockRows:
    """Rows [start, stop) of a block, at least one."""

    block: DecodedBlock
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def padding(layout: Layout, rows: int) -> BlockRows:
    """Rows of weight zero with empty features."""
    dtype = id_dtype(layout.selection.vocabulary_sizes)
    singles = len(layout.selection.sparse) - len(layout.lists)
    numbers = len(layout.selection.dense) + 2 * len(layout.selection.labels)
    empty = Lists(np.empty(0, dtype), np.zeros(rows + 1, np.int64))
    block = DecodedBlock(
        ids=np.full((singles, rows), ABSENT, dtype),
        complete=np.zeros(singles, np.bool_),
        lists=[empty] * len(layout.lists),
        numbers=np.zeros((numbers, rows), np.float32),
        carried=np.zeros((len(layout.carried), rows), np.int64) if layout.carried else None,
    )
    return BlockRows(block, 0, rows)


@dataclass(frozen=True)
class Joined:
    """Concatenated rows, B of them."""

    values: Tensor
    """int64: ids feature by feature, and row by row within a feature."""
    lengths: Tensor
    """[F * B] int32, number of ids."""
    dense: Tensor
    """[B, D] float32."""
    labels: Tensor
    """[B, T] float32."""
    weights: Tensor
    """[B, T] float32."""
    rows: int
    """Number of rows B."""
    carried: Tensor | None = None
    """[C, B] int64, if there are columns beside the inputs."""


def join(layout: Layout, parts: Sequence[BlockRows]) -> Joined:
    """Concatenate rows."""
    selection = layout.selection
    size = sum(part.count for part in parts)
    lengths = np.empty((len(selection.sparse), size), np.int32)
    pieces: list[list[Array]] = []  # in the order of the values
    key = 0
    for run in layout.runs:
        if isinstance(run, range):
            pieces.append(_single_ids(parts, run, lengths[key : key + len(run)]))
            key += len(run)
        else:
            pieces.append(_lists(parts, run, lengths[key]))
            key += 1
    values = np.empty(sum(piece.size for column in pieces for piece in column), np.int64)
    start = 0
    for column in pieces:
        stop = start + sum(piece.size for piece in column)
        np.concatenate(column, axis=-1, out=values[start:stop].reshape(*column[0].shape[:-1], -1))
        start = stop
    # Joined before transposing: the columns of a whole block are often a power of two apart, which conflicts in caches.
    numbers = np.concatenate([part.block.numbers[:, part.start : part.stop] for part in parts], axis=1)
    dense, labels = len(selection.dense), len(selection.labels)
    return Joined(
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(lengths.reshape(-1)),
        dense=_transposed(numbers[:dense]),
        labels=_transposed(numbers[dense : dense + labels]),
        weights=_transposed(numbers[dense + labels :]),
        rows=size,
        carried=_carried(parts) if layout.carried else None,
    )


def _single_ids(parts: Sequence[BlockRows], run: range, lengths: Array) -> list[Array]:
    """Ids of a run of columns: [columns, rows] per part, or flat if some are absent. Fills ``lengths``, [columns, B]."""
    columns = slice(run.start, run.stop)
    ids = [part.block.ids[columns, part.start : part.stop] for part in parts]
    if all(part.block.complete[columns].all() for part in parts):
        lengths[:] = 1
        return ids
    joined = np.concatenate(ids, axis=1)
    present = joined != ABSENT
    lengths[:] = present
    return [joined[present]]


def _lists(parts: Sequence[BlockRows], column: int, lengths: Array) -> list[Array]:
    """Ids of a column of lists, part by part. Fills ``lengths``, [B]."""
    ids, start = [], 0
    for part in parts:
        lists = part.block.lists[column]
        offsets = lists.offsets[part.start : part.stop + 1]
        np.subtract(offsets[1:], offsets[:-1], out=lengths[start : start + part.count], casting="same_kind")
        ids.append(lists.values[offsets[0] : offsets[-1]])
        start += part.count
    return ids


def _carried(parts: Sequence[BlockRows]) -> Tensor:
    found = [part.block.carried[:, part.start : part.stop] for part in parts if part.block.carried is not None]
    return torch.from_numpy(np.concatenate(found, axis=1))


def _transposed(numbers: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers.T))
