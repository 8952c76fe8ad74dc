"""Threads that read and permute blocks ahead of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch.profiler import record_function

from dlrm_mtl.data.dataset import DataFile
from dlrm_mtl.data.decode import BlockBuilder, DecodedBlock, Sources
from dlrm_mtl.data.file_checks import Layout
from dlrm_mtl.data.order import BlockRange, Piece
from dlrm_mtl.storage.filesystems import is_local

Groups = Sequence[tuple[DataFile, int]]
"""Row groups of a split: file, and number of the row group in the file."""


class BlockReader:
    """Reader of blocks; any number of threads may use it at once."""

    def __init__(
        self, groups: Groups, layout: Layout, count_unknown: Callable[[str, int], None], *, keep: int = 1
    ) -> None:
        """See :class:`BlockBuilder`; the last ``keep`` row groups shared by lanes are kept in memory."""
        self._groups = groups
        self._columns = layout.columns
        self._builder = BlockBuilder(layout, count_unknown)
        self._open = threading.local()
        self._keep = keep
        self._shared: dict[int, Future[pa.Table]] = {}  # oldest first
        self._lock = threading.Lock()

    def read(self, block: BlockRange, order: NDArray[np.int64] | None) -> DecodedBlock:
        """Read ``block`` with row ``order[i]`` at position i; raises :class:`UserError` if a file or a value cannot be used."""
        with record_function("## data: read block ##"):
            tables: list[pa.Table] = []
            places = []
            for _, run in groupby(block.pieces, self._run_of):
                tables += self._read(list(run))
            for piece in block.pieces:
                file, group = self._groups[piece.group]
                places.append((piece.rows, f"{file.path}: row group {group}", piece.start))
            return self._builder.build(Sources(tables, places), order)

    def _run_of(self, piece: Piece) -> tuple[str, int]:
        """Key of pieces that can be read together: the file for whole row groups, file and row group otherwise."""
        file, group = self._groups[piece.group]
        whole = piece.rows == int(file.metadata.row_group(group).num_rows)
        return file.path, -1 if whole else piece.group

    def _read(self, pieces: list[Piece]) -> list[pa.Table]:
        """Rows of pieces with the same key, concatenated."""
        first = pieces[0]
        if self._run_of(first)[1] != -1:
            return [self._shared_group(first.group).slice(first.start, first.rows)]
        file = self._groups[first.group][0]
        return _read_groups(file, self._opened(file), [self._groups[piece.group][1] for piece in pieces], self._columns)

    def _shared_group(self, number: int) -> pa.Table:
        """A row group shared by lanes. The last ones are kept, since the next lane's first block usually reads them next."""
        with self._lock:
            table = self._shared.get(number)
            mine = table is None
            if table is None:
                while len(self._shared) >= self._keep:
                    del self._shared[next(iter(self._shared))]
                table = self._shared[number] = Future()
        if mine:
            file, group = self._groups[number]
            try:
                table.set_result(file.read_group(self._opened(file), group, self._columns))
            except BaseException as error:
                table.set_exception(error)
        return table.result()

    def _opened(self, file: DataFile) -> pq.ParquetFile:
        """``file``, opened by this thread: an open file must not be shared between threads."""
        opened: tuple[DataFile, pq.ParquetFile] | None = getattr(self._open, "file", None)
        if opened is None or opened[0] is not file:
            opened = self._open.file = (file, file.open())
        return opened[1]


def _read_groups(file: DataFile, opened: pq.ParquetFile, groups: list[int], columns: Sequence[str]) -> list[pa.Table]:
    """Read consecutive row groups, in one call if possible.

    After a failure they are read one by one, to find the damaged one.
    """
    if len(groups) > 1 and is_local(file.filesystem):
        with suppress(OSError, pa.ArrowException):
            return [opened.read_row_groups(groups, columns=list(columns), use_threads=False)]
    return [file.read_group(opened, group, columns) for group in groups]


class BlocksAhead:
    """Iterator over blocks that a thread pool reads, up to ``ahead`` of them in advance.

    The first block is started at once, so that the first blocks of all lanes are read before any second one.
    """

    def __init__(self, pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], DecodedBlock]], ahead: int) -> None:
        self._pool = pool
        self._jobs = jobs
        self._ahead = ahead
        self._pending: deque[Future[DecodedBlock]] = deque()
        self._begin(1)

    def __iter__(self) -> BlocksAhead:
        return self

    def __next__(self) -> DecodedBlock:
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
