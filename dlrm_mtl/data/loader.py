"""The reader: one process's batches of an epoch, in an order that is a pure function of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from torch.profiler import record_function

from dlrm_mtl.data.assemble import Rows, assemble, padding
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.check import check_files
from dlrm_mtl.data.columns import Block, BlockBuilder
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import DataFile, Split
from dlrm_mtl.data.lanes import Block as BlockRange
from dlrm_mtl.data.lanes import Lane, Piece, block_order, cut, own_lanes, row_order, schedule, steps_per_epoch
from dlrm_mtl.data.prefetch import Prefetcher
from dlrm_mtl.data.selection import select
from dlrm_mtl.errors import UserError


class BatchLoader:
    """Gives process ``rank`` its part of every global batch of an epoch.

    The parts of all processes, one after the other, are the global batch, which depends on neither their number nor the
    prefetching. Memory holds one block per own lane, one row group, and ``config.prefetch`` batches.
    """

    def __init__(
        self,
        split: Split,
        config: DataConfig,
        labels: Sequence[str],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int | None = None,
        shuffle: bool | None = None,
    ) -> None:
        """Check the files of ``split`` and cut them into lanes; reads no row yet.

        Args:
            split: the files to read.
            config: columns, lanes, block size and the rest.
            labels: names of the labels, in the order of the columns of ``Batch.labels``.
            seed: of the order of training, at least 0.
            rank: this process, 0 to ``world_size`` - 1.
            world_size: number of processes; must divide ``config.lanes``.
            batch_size: rows of a global batch, a multiple of ``config.lanes``; default: ``config.batch_size``.
            shuffle: default: ``config.shuffle``.

        Raises:
            UserError: if names, columns, types, footer statistics, the world size or the batch size do not fit.
        """
        batch_size = config.batch_size if batch_size is None else batch_size
        if batch_size <= 0 or batch_size % config.lanes:
            raise UserError(f"batch size {batch_size} is not a multiple of data.lanes ({config.lanes}); set it to one.")
        own = own_lanes(config.lanes, rank, world_size)
        self.selection = select(split.spec, config, labels)
        self.layout = check_files(split.files, self.selection)
        self.rows = split.rows
        """Rows of the split, over all processes."""
        self.local_batch_size = batch_size // world_size
        """Rows of this process's part of a global batch."""
        self.unknown_ids: dict[str, int] = {}
        """By feature: ids out of range that were read as 0 so far, in the blocks this process has read."""
        self.wait_seconds = 0.0
        """Time that the consumer has waited for batches so far."""
        self._seed = seed
        self._shuffle = config.shuffle if shuffle is None else shuffle
        self._prefetch = config.prefetch
        self._lane_batch = batch_size // config.lanes
        self._groups = [(file, group) for file in split.files for group in range(file.metadata.num_row_groups)]
        lanes = cut(
            [file.metadata.row_group(group).num_rows for file, group in self._groups], config.lanes, config.block_rows
        )
        self._lanes = [lanes[index] for index in own]
        self.steps_per_epoch = steps_per_epoch(lanes, self._lane_batch)
        """Number of batches of an epoch, the same on every process."""

    def epoch(self, epoch: int, start_step: int = 0) -> Prefetcher[Batch]:
        """Iterate over the batches of one epoch from ``start_step`` on; close the iterator to stop early.

        Only blocks that are needed are read. A :class:`UserError` that is met while reading is raised by the iterator.
        """
        return Prefetcher(lambda: self._batches(epoch, start_step), self._prefetch, self._add_wait)

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        groups = _GroupReader(self._groups, self.layout.columns)
        lanes = [self._lane_parts(groups, lane, epoch, start_step) for lane in self._lanes]
        for _ in range(start_step, self.steps_per_epoch):
            with record_function("## data: batch ##"):
                parts = [part for lane in lanes for part in self._padded(next(lane, []))]
                batch = assemble(self.layout, parts)
            yield batch

    def _lane_parts(self, groups: _GroupReader, lane: Lane, epoch: int, start_step: int) -> Iterator[list[Rows]]:
        """What each step takes from ``lane``; at most one block is held."""
        order = block_order(self._seed, epoch, lane, self._shuffle)
        held: int | None = None
        for slices in schedule(lane, order, self._lane_batch, start_step):
            parts = []
            for part in slices:
                if part.block != held:
                    block = None  # let go of the old block before the new one is read
                    block = self._read(groups, lane.blocks[part.block])
                    # Permuted as a whole, for one big gather is many times cheaper than a small one for every step.
                    block = block.take(row_order(self._seed, epoch, lane, part.block, self._shuffle))
                    held = part.block
                assert block is not None
                parts.append(Rows(block, part.start, part.stop))
            yield parts

    def _read(self, groups: _GroupReader, block: BlockRange) -> Block:
        with record_function("## data: read block ##"):
            builder = BlockBuilder(self.layout, block.rows, self._count_unknown)
            for piece in block.pieces:
                builder.add(groups.read(piece), groups.place(piece), piece.start)
            return builder.finish()

    def _padded(self, parts: list[Rows]) -> list[Rows]:
        missing = self._lane_batch - sum(part.count for part in parts)
        return [*parts, padding(self.layout, missing)] if missing else parts

    def _count_unknown(self, feature: str, count: int) -> None:
        self.unknown_ids[feature] = self.unknown_ids.get(feature, 0) + count

    def _add_wait(self, seconds: float) -> None:
        self.wait_seconds += seconds


class _GroupReader:
    """Reads row groups of a split; keeps the last file open, and the last row group if a part of it is left to read."""

    def __init__(self, groups: Sequence[tuple[DataFile, int]], columns: Sequence[str]) -> None:
        self._groups = groups
        self._columns = columns
        self._open: tuple[DataFile, pq.ParquetFile] | None = None
        self._kept: tuple[int, pa.Table] | None = None

    def place(self, piece: Piece) -> str:
        file, group = self._groups[piece.group]
        return f"{file.path}: row group {group}"

    def read(self, piece: Piece) -> pa.Table:
        if self._kept is not None and self._kept[0] == piece.group:
            table = self._kept[1]
        else:
            self._kept = None
            file, group = self._groups[piece.group]
            if self._open is None or self._open[0] is not file:
                self._open = (file, file.open())
            table = file.read_group(self._open[1], group, self._columns)
        # A row group that two lanes share: the next lane's first block usually reads it next.
        self._kept = (piece.group, table) if piece.stop < table.num_rows else None
        return table.slice(piece.start, piece.rows)
