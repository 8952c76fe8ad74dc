"""Reading and permuting blocks in threads, ahead of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch.profiler import record_function

from dlrm_mtl.data.check import Layout
from dlrm_mtl.data.columns import Block, BlockBuilder, Sources
from dlrm_mtl.data.dataset import DataFile
from dlrm_mtl.data.lanes import Block as BlockRange
from dlrm_mtl.data.lanes import Piece

Groups = Sequence[tuple[DataFile, int]]
"""The row groups of a split: file, and number of the row group in it."""


class BlockReader:
    """Reads blocks, in any number of threads at once."""

    def __init__(self, groups: Groups, layout: Layout, count_unknown: Callable[[str, int], None]) -> None:
        """``count_unknown`` is called with a feature and how many of its ids were out of range and read as 0."""
        self._groups = groups
        self._columns = layout.columns
        self._builder = BlockBuilder(layout, count_unknown)
        self._open = threading.local()
        self._part_left: tuple[int, pa.Table] | None = None
        self._lock = threading.Lock()

    def read(self, block: BlockRange, order: NDArray[np.int64] | None) -> Block:
        """Read ``block``, row ``order[i]`` at place i; raises :class:`UserError` if a file or a value cannot be used."""
        with record_function("## data: read block ##"):
            parts = []
            for piece in block.pieces:
                file, group = self._groups[piece.group]
                table = self._table(piece).slice(piece.start, piece.rows)
                parts.append((table, f"{file.path}: row group {group}", piece.start))
            return self._builder.build(Sources(parts), order)

    def _table(self, piece: Piece) -> pa.Table:
        file, group = self._groups[piece.group]
        if piece.rows == file.metadata.row_group(group).num_rows:
            return self._read(piece.group)
        # A row group that lanes share: the last one is kept, for the next lane's first block usually reads it next.
        with self._lock:
            if self._part_left is None or self._part_left[0] != piece.group:
                self._part_left = None
                self._part_left = (piece.group, self._read(piece.group))
            return self._part_left[1]

    def _read(self, number: int) -> pa.Table:
        file, group = self._groups[number]
        opened: tuple[DataFile, pq.ParquetFile] | None = getattr(self._open, "file", None)
        if opened is None or opened[0] is not file:
            opened = self._open.file = (file, file.open())
        return file.read_group(opened[1], group, self._columns)


class BlocksAhead:
    """Iterates over blocks that a pool's threads make, up to ``ahead`` of them before they are asked for.

    The first one is begun at once, so that the first blocks of all lanes come before the second ones.
    """

    def __init__(self, pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], Block]], ahead: int) -> None:
        self._pool = pool
        self._jobs = jobs
        self._ahead = ahead
        self._pending: deque[Future[Block]] = deque()
        self._begin(1)

    def __iter__(self) -> BlocksAhead:
        return self

    def __next__(self) -> Block:
        self._begin(1)
        if not self._pending:
            raise StopIteration
        block = self._pending.popleft()
        self._begin(self._ahead)
        return block.result()

    def _begin(self, count: int) -> None:
        while len(self._pending) < count:
            job = next(self._jobs, None)
            if job is None:
                break
            self._pending.append(self._pool.submit(job))
