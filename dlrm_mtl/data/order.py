"""Lanes: the order of training as a pure function of (seed, epoch, step). No I/O here.

The rows of a split (files by name, row groups in order) are cut into a fixed number of lanes, contiguous ranges whose
lengths differ by at most one. A lane is cut into blocks, runs of row-group pieces that are read together. Every epoch
permutes the blocks of a lane and the rows of a block. The global batch of step s is the concatenation, over the lanes, of
the rows [s * b, (s + 1) * b) of each lane's permuted order, b = batch size / lanes; a lane with fewer rows left is padded.

A process reads the lanes [rank * lanes / world_size, (rank + 1) * lanes / world_size): the concatenated batches of the
processes are the global batch, for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of one row group."""

    group: int
    """Position of the row group in the split, counted over all files."""
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class BlockRange:
    """Pieces that are read and permuted together."""

    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(piece.rows for piece in self.pieces)


@dataclass(frozen=True)
class Lane:
    """A contiguous range of a split's rows."""

    index: int
    blocks: tuple[BlockRange, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(block.rows for block in self.blocks)


@dataclass(frozen=True)
class Slice:
    """Rows that one step takes from one block of a lane."""

    block: int
    """Position of the block in the lane, in file order."""
    start: int
    """The rows are order[start:stop], where order is the block's :func:`row_order`."""
    stop: int


def cut(group_rows: Sequence[int], lanes: int, block_rows: int) -> list[Lane]:
    """Cut a split into lanes and blocks.

    Args:
        group_rows: rows of each row group, files by name, row groups in order.
        lanes: number of lanes; if there are fewer rows, the last lanes are empty.
        block_rows: a block has at most this many rows, or one piece if that is larger.
    """
    ends = np.cumsum(np.asarray(group_rows, dtype=np.int64))
    total = int(ends[-1]) if len(ends) else 0
    edges = [total * index // lanes for index in range(lanes + 1)]
    return [
        Lane(index, _blocks(_pieces(group_rows, ends, edges[index], edges[index + 1]), block_rows))
        for index in range(lanes)
    ]


def own_lanes(lanes: int, rank: int, world_size: int) -> range:
    """Lanes that process ``rank`` reads; raises :class:`UserError` if ``world_size`` does not divide ``lanes``."""
    if lanes % world_size:
        below = next(size for size in range(world_size, 0, -1) if lanes % size == 0)
        above = next((size for size in range(world_size, lanes + 1) if lanes % size == 0), below)
        sizes = f"{below} or {above}" if above != below else f"{below}"
        lower, upper = lanes // world_size * world_size, -(-lanes // world_size) * world_size
        counts = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"data.lanes: {lanes} lanes cannot be shared equally by {world_size} processes; "
            f"start {sizes} processes, or set data.lanes to {counts} (which changes the order of training)."
        )
    each = lanes // world_size
    return range(rank * each, (rank + 1) * each)


def steps_per_epoch(lanes: Sequence[Lane], lane_batch: int) -> int:
    """Number of steps until the longest lane has no rows left, ``lane_batch`` rows a step."""
    return -(-max((lane.rows for lane in lanes), default=0) // lane_batch)


def block_order(seed: int, epoch: int, lane: Lane, shuffle: bool) -> NDArray[np.int64]:
    """Order in which the blocks of ``lane`` are read, [blocks] int64."""
    if not shuffle:
        return np.arange(len(lane.blocks), dtype=np.int64)
    return _permutation(seed, (0, epoch, lane.index), len(lane.blocks))


def row_order(seed: int, epoch: int, lane: Lane, block: int, shuffle: bool) -> NDArray[np.int64]:
    """Order in which the rows of block number ``block`` (in file order) are used, [rows] int64."""
    rows = lane.blocks[block].rows
    if not shuffle:
        return np.arange(rows, dtype=np.int64)
    return _permutation(seed, (1, epoch, lane.index, block), rows)


def schedule(lane: Lane, order: NDArray[np.int64], lane_batch: int, start_step: int) -> Iterator[list[Slice]]:
    """Slices of each step from ``start_step`` on, for ``lane`` with its blocks in ``order``.

    Yields as long as the lane has rows; a step may span several blocks, and the last one may be short.
    """
    begin = 0  # position of the current block in the lane
    position = start_step * lane_batch
    slices: list[Slice] = []
    wanted = lane_batch
    for block in order.tolist():
        end = begin + lane.blocks[block].rows
        while position < end:
            stop = min(end, position + wanted)
            slices.append(Slice(block, position - begin, stop - begin))
            wanted -= stop - position
            position = stop
            if wanted == 0:
                yield slices
                slices, wanted = [], lane_batch
        begin = end
    if slices:
        yield slices


def _pieces(group_rows: Sequence[int], ends: NDArray[np.int64], start: int, stop: int) -> Iterator[Piece]:
    group = int(np.searchsorted(ends, start, side="right"))
    while start < stop:
        end = int(ends[group])
        first = end - group_rows[group]
        last = min(end, stop)
        if last > start:
            yield Piece(group, start - first, last - first)
        start = max(start, last)
        group += 1


def _blocks(pieces: Iterator[Piece], block_rows: int) -> tuple[BlockRange, ...]:
    blocks: list[BlockRange] = []
    run: list[Piece] = []
    rows = 0
    for piece in pieces:
        if run and rows + piece.rows > block_rows:
            blocks.append(BlockRange(tuple(run)))
            run, rows = [], 0
        run.append(piece)
        rows += piece.rows
    if run:
        blocks.append(BlockRange(tuple(run)))
    return tuple(blocks)


def _permutation(seed: int, key: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """A permutation of range(size) that is the same with every version of numpy and on every platform.

    numpy promises a fixed stream for its bit generators and for SeedSequence, but not for Generator:
    ``Generator.permutation`` may change with a release, which would change every run's order. So the rows are sorted by raw
    64-bit words of Philox, equal words by position. numpy's default sort is several times faster than its stable one, and
    equivalent if no words are equal, which is nearly always so.
    """
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)).random_raw(size)
    order = np.argsort(words)
    in_order = words[order]
    return np.argsort(words, kind="stable") if (in_order[1:] == in_order[:-1]).any() else order
