"""Gathering rows of blocks into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.check import Layout
from dlrm_mtl.data.columns import ABSENT, Array, Block, Lists, id_dtype


@dataclass
class Rows:
    """Some rows of a block, in the order of a batch."""

    ids: Array
    """[columns of single ids, rows] int32 or int64."""
    lists: list[tuple[Array, Array]]
    """For each column of lists: the ids of all rows, [number of ids], and the rows' lengths, [rows] int32."""
    numbers: Array
    """[D + 2 T, rows] float32."""


def take(block: Block, index: NDArray[np.int64]) -> Rows:
    """The rows ``index`` of ``block``, in that order."""
    return Rows(
        ids=np.take(block.ids, index, axis=1, mode="clip"),  # index is in range: clip only saves the check
        lists=[_take_lists(lists, index) for lists in block.lists],
        numbers=np.take(block.numbers, index, axis=1, mode="clip"),
    )


def whole(block: Block) -> Rows:
    """All rows of ``block``, in its order."""
    return take(block, np.arange(block.rows))


def padding(layout: Layout, rows: int) -> Rows:
    """Rows of weight zero with empty features."""
    dtype = id_dtype(layout.selection.vocabulary_sizes)
    singles = len(layout.selection.sparse) - len(layout.lists)
    numbers = len(layout.selection.dense) + 2 * len(layout.selection.labels)
    return Rows(
        ids=np.full((singles, rows), ABSENT, dtype),
        lists=[(np.empty(0, dtype), np.zeros(rows, np.int32)) for _ in layout.lists],
        numbers=np.zeros((numbers, rows), np.float32),
    )


def assemble(layout: Layout, parts: Sequence[Rows]) -> Batch:
    """Put rows one after the other and turn them into a batch."""
    ids = _concatenate([part.ids for part in parts])
    numbers = _concatenate([part.numbers for part in parts])
    present = ids != ABSENT
    complete = bool(present.all())
    selection = layout.selection
    size = numbers.shape[1]
    lengths = np.empty((len(selection.sparse), size), np.int32)
    values: list[Array] = []
    single = listed = 0
    for key, feature in enumerate(selection.sparse):
        if feature.name in layout.lists:
            values += [part.lists[listed][0] for part in parts]
            np.concatenate([part.lists[listed][1] for part in parts], out=lengths[key])
            listed += 1
        else:
            values.append(ids[single] if complete else ids[single][present[single]])
            lengths[key] = present[single]
            single += 1
    joined = np.concatenate(values, dtype=np.int64) if values else np.empty(0, np.int64)
    dense, labels = len(selection.dense), len(selection.labels)
    return Batch(
        sparse=KeyedJaggedTensor(
            keys=selection.keys,
            values=torch.from_numpy(joined),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=size,
        ),
        dense=_columns_last(numbers[:dense]),
        labels=_columns_last(numbers[dense : dense + labels]),
        weights=_columns_last(numbers[dense + labels :]),
    )


def _take_lists(lists: Lists, index: NDArray[np.int64]) -> tuple[Array, Array]:
    lengths = lists.lengths[index]
    ends = np.cumsum(lengths, dtype=np.int64)
    # Output position p of row r comes from values[starts[r] + p - begin of r in the output].
    shifts = lists.starts[index] - (ends - lengths)
    positions = np.repeat(shifts, lengths)
    positions += np.arange(len(positions))
    return np.take(lists.values, positions, mode="clip"), lengths


def _concatenate(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)


def _columns_last(rows: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows.T))
