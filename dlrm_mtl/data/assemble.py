"""Putting rows of blocks together to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.check import Layout
from dlrm_mtl.data.columns import ABSENT, Array, Block, Lists, id_dtype


@dataclass
class Rows:
    """Rows start to stop (at least one) of a block whose lists' ids lie one after the other."""

    block: Block
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def padding(layout: Layout, rows: int) -> Rows:
    """Rows of weight zero with empty features."""
    dtype = id_dtype(layout.selection.vocabulary_sizes)
    singles = len(layout.selection.sparse) - len(layout.lists)
    numbers = len(layout.selection.dense) + 2 * len(layout.selection.labels)
    empty = Lists(np.empty(0, dtype), np.zeros(rows, np.int64), np.zeros(rows, np.int32))
    block = Block(
        np.full((rows, singles), ABSENT, dtype), [empty] * len(layout.lists), np.zeros((rows, numbers), np.float32)
    )
    return Rows(block, 0, rows)


def assemble(layout: Layout, parts: Sequence[Rows]) -> Batch:
    """Put rows one after the other and turn them into a batch."""
    numbers = np.concatenate([part.block.numbers[part.start : part.stop] for part in parts])  # [B, D + 2 T]
    ids = np.concatenate([part.block.ids[part.start : part.stop] for part in parts])  # [B, columns]
    ids = ids.T.astype(np.int64, order="C")  # [columns, B]
    present = ids != ABSENT
    complete = bool(present.all())
    selection = layout.selection
    size = len(numbers)
    lengths = np.empty((len(selection.sparse), size), np.int32)
    values: list[Array] = []
    key = 0
    for run in layout.runs:
        if isinstance(run, range):
            columns = slice(run.start, run.stop)
            values.append(ids[columns].ravel() if complete else ids[columns][present[columns]])
            lengths[key : key + len(run)] = present[columns]
            key += len(run)
        else:
            values += [part.block.lists[run].ids(part.start, part.stop) for part in parts]
            np.concatenate([part.block.lists[run].lengths[part.start : part.stop] for part in parts], out=lengths[key])
            key += 1
    joined = np.concatenate(values, dtype=np.int64) if values else np.empty(0, np.int64)
    dense, labels = len(selection.dense), len(selection.labels)
    return Batch(
        sparse=KeyedJaggedTensor(
            keys=selection.keys,
            values=torch.from_numpy(joined),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=size,
        ),
        dense=_tensor(numbers[:, :dense]),
        labels=_tensor(numbers[:, dense : dense + labels]),
        weights=_tensor(numbers[:, dense + labels :]),
    )


def _tensor(numbers: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers))
