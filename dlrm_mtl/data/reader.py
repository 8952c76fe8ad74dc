"""The reader: one process's batches of an epoch, in an order that is a pure function of (seed, epoch, step)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from torch.profiler import record_function

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.batching import assemble
from dlrm_mtl.data.block_reader import BlockReader, BlocksAhead
from dlrm_mtl.data.carried_columns import CarriedColumn
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import Split
from dlrm_mtl.data.decode import DecodedBlock
from dlrm_mtl.data.file_checks import check_files
from dlrm_mtl.data.join_rows import BlockRows, padding
from dlrm_mtl.data.negatives.rewrite import Negatives
from dlrm_mtl.data.order import Lane, Slice, block_order, cut, own_lanes, row_order, schedule, steps_per_epoch
from dlrm_mtl.data.prefetch import Prefetcher


class BatchLoader:
    """Loader of process ``rank``'s part of every global batch of an epoch.

    The concatenated parts of all processes are the global batch, which depends on neither their number nor the prefetching.
    Memory holds 1 + ``config.read_ahead`` blocks per own lane, one block for each of ``config.read_threads`` threads,
    shared row groups (one more than threads), and ``config.prefetch`` batches.
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
        negatives: Negatives | None = None,
        pin: bool = False,
        served: bool = False,
        carried: Sequence[CarriedColumn] = (),
    ) -> None:
        """Check the files of ``split`` and cut them into lanes; reads no row yet.

        Args:
            split: the files to read.
            config: columns, lanes, block size and the rest.
            labels: names of the labels, in the order of the columns of ``Batch.labels``.
            seed: seed of the order of training, at least 0.
            rank: this process, 0 to ``world_size`` - 1.
            world_size: number of processes; must divide ``config.lanes``.
            batch_size: rows of a global batch, a multiple of ``config.lanes``; default: ``config.batch_size``.
            shuffle: default: ``config.shuffle``.
            negatives: rewriter that adds rows with drawn items; default: none, even with ``config.negatives``.
            pin: True for batches in page-locked memory, which are copied to a GPU asynchronously.
            served: True outside training: features in ``config.train_only`` are constant.
            carried: columns to read beside the inputs, for ``Batch.carried``.

        Raises:
            UserError: if names, columns, types, footer statistics, the world size or the batch size do not fit.
        """
        batch_size = config.batch_size if batch_size is None else batch_size
        if batch_size <= 0 or batch_size % config.lanes:
            raise UserError(f"batch size {batch_size} is not a multiple of data.lanes ({config.lanes}); set it to one.")
        own = own_lanes(config.lanes, rank, world_size)
        self.selection = select(split.spec, config, labels, served=served)
        self.layout = check_files(split.files, self.selection, carried=carried)
        self.rows = split.rows
        """Rows of the split, over all processes."""
        self.local_batch_size = batch_size // world_size * (1 + negatives.each if negatives else 1)
        """Rows of this process's part of a global batch, including drawn ones."""
        self.unknown_ids: dict[str, int] = {}
        """Number of ids out of range that were read as 0 so far, by feature, in the blocks that this process has read."""
        self.wait_seconds = 0.0
        """Seconds that the consumer has waited for batches so far."""
        self._seed = seed
        self._negatives = negatives
        self._pin = pin
        self._own = own
        self._shuffle = config.shuffle if shuffle is None else shuffle
        self._prefetch = config.prefetch
        self._read_ahead = config.read_ahead
        self._read_threads = config.read_threads
        self._lock = threading.Lock()
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

        Only blocks that are needed are read. A :class:`UserError` while reading is raised by the iterator.
        """
        return Prefetcher(lambda: self._batches(epoch, start_step), self._prefetch, self._add_wait)

    def empty_batch(self) -> Batch:
        """A batch of only padding."""
        return assemble(self.layout, [padding(self.layout, self.local_batch_size)])

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        reader = BlockReader(self._groups, self.layout, self._count_unknown, keep=self._read_threads + 1)
        pool = ThreadPoolExecutor(self._read_threads, thread_name_prefix="block-reader")
        try:
            lanes = [self._lane_parts(reader, pool, lane, epoch, start_step) for lane in self._lanes]
            for step in range(start_step, self.steps_per_epoch):
                with record_function("## data: batch ##"):
                    parts = [part for lane in lanes for part in self._padded(next(lane, []))]
                    batch = assemble(self.layout, parts)
                if self._negatives is not None:
                    batch = self._negatives(batch, self._own, epoch, step)
                yield batch.pin_memory() if self._pin else batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _lane_parts(
        self, reader: BlockReader, pool: ThreadPoolExecutor, lane: Lane, epoch: int, start_step: int
    ) -> Iterator[list[BlockRows]]:
        """Rows of each step from ``lane``. One block is in use while the next ones are read."""
        order = block_order(self._seed, epoch, lane, self._shuffle)
        ends = np.cumsum([lane.blocks[block].rows for block in order.tolist()])
        needed = order[np.searchsorted(ends, start_step * self._lane_batch, side="right") :].tolist()

        def read(block: int) -> DecodedBlock:
            rows = row_order(self._seed, epoch, lane, block, self._shuffle) if self._shuffle else None
            return reader.read(lane.blocks[block], rows)

        blocks = BlocksAhead(pool, (partial(read, block) for block in needed), self._read_ahead)
        return self._slices(schedule(lane, order, self._lane_batch, start_step), blocks)

    def _slices(self, steps: Iterator[list[Slice]], blocks: Iterator[DecodedBlock]) -> Iterator[list[BlockRows]]:
        held: int | None = None
        block: DecodedBlock | None = None
        for slices in steps:
            parts = []
            for part in slices:
                if part.block != held:
                    block = None  # release the old block before reading another one
                    block = next(blocks)
                    held = part.block
                assert block is not None
                parts.append(BlockRows(block, part.start, part.stop))
            yield parts

    def _padded(self, parts: list[BlockRows]) -> list[BlockRows]:
        missing = self._lane_batch - sum(part.count for part in parts)
        return [*parts, padding(self.layout, missing)] if missing else parts

    def _count_unknown(self, feature: str, count: int) -> None:
        with self._lock:
            self.unknown_ids[feature] = self.unknown_ids.get(feature, 0) + count

    def _add_wait(self, seconds: float) -> None:
        self.wait_seconds += seconds
