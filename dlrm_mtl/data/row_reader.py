"""Reading rows in file order, for prediction: constant memory, with extra columns carried along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.batching import assemble
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import DataFile, open_files
from dlrm_mtl.data.decode import BlockBuilder, Sources
from dlrm_mtl.data.file_checks import check_files, refuse_twice
from dlrm_mtl.data.join_rows import BlockRows, padding
from dlrm_mtl.data.parquet_guard import unreadable
from dlrm_mtl.data.prefetch import Prefetcher
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.storage.filesystems import locate


class RowReader:
    """Iterator over (batch, table of carried columns) in file order; see :func:`iterate_rows`."""

    def __init__(
        self,
        files: Sequence[DataFile],
        spec: DatasetSpec,
        config: DataConfig,
        batch_size: int,
        carry: Sequence[str],
        labels: Sequence[str],
    ) -> None:
        self.selection = select(spec, config.model_copy(update={"weight": None}), labels, served=True)
        self.layout = check_files(files, self.selection, labels_required=False)
        self.rows = sum(file.rows for file in files)
        """Rows of all files."""
        self.unknown_ids: dict[str, int] = {}
        """Number of ids out of range that were read as 0 so far, by feature."""
        first = files[0].schema
        for file in files:
            for name in carry:
                if name not in file.schema.names:
                    raise UserError(
                        f"{file.path}: column {name!r}, to be carried over, is missing; {suggest(name, first.names)}."
                    )
                refuse_twice(file, name)
                if file.schema.field(name).type != first.field(name).type:
                    raise UserError(
                        f"{file.path}: column {name!r} has another type than in {files[0].path}; write both alike."
                    )
        self.carried_schema = pa.schema([pa.field(name, first.field(name).type) for name in carry])
        """Schema of the carried columns."""
        self._files = files
        self._batch_size = batch_size
        self._columns = list(dict.fromkeys([*self.layout.columns, *carry]))
        self._prefetch = config.prefetch

    def __iter__(self) -> Prefetcher[tuple[Batch, pa.Table]]:
        """Start reading; close the iterator to stop early."""
        return Prefetcher(self._batches, self._prefetch)

    def share(self, rank: int, world_size: int) -> Prefetcher[tuple[Batch | None, int, pa.Table]]:
        """Start reading for one of several processes, which owns every ``world_size``-th batch, from number ``rank`` on.

        Yields a batch, the number of its rows, and the carried columns; the batch is None for other processes' batches.
        With several processes, batches are padded to ``batch_size`` rows, so that all processes look up equally many.
        """
        return Prefetcher(lambda: self._shared_batches(rank, world_size), self._prefetch)

    def empty_batch(self) -> Batch:
        """A batch of only padding, for a process that has no rows left while others have."""
        return assemble(self.layout, [padding(self.layout, self._batch_size)])

    def _batches(self) -> Iterator[tuple[Batch, pa.Table]]:
        for batch, _, carried in self._shared_batches(0, 1):
            assert batch is not None
            yield batch, carried

    def _shared_batches(self, rank: int, world_size: int) -> Iterator[tuple[Batch | None, int, pa.Table]]:
        builder = BlockBuilder(self.layout, self._count_unknown)
        for number, (sources, carried) in enumerate(self._read()):
            batch, rows = None, sources.rows
            if number % world_size == rank:
                parts = [BlockRows(builder.build(sources), 0, rows)]
                if world_size > 1 and rows < self._batch_size:
                    parts.append(padding(self.layout, self._batch_size - rows))
                batch = assemble(self.layout, parts)
            yield batch, rows, carried

    def _read(self) -> Iterator[tuple[Sources, pa.Table]]:
        """Rows of each batch as they are stored, and the carried columns."""
        for file in self._files:
            first_row = 0
            for table in self._tables(file):
                carried = table.select(self.carried_schema.names).cast(self.carried_schema)
                yield Sources([table], [(table.num_rows, file.path, first_row)]), carried
                first_row += table.num_rows

    def _tables(self, file: DataFile) -> Iterator[pa.Table]:
        """Tables of batch_size rows, shorter at the end of a file; row groups of any size are streamed."""
        opened = file.open()
        waiting: list[pa.RecordBatch] = []
        rows = 0
        try:
            for batch in opened.iter_batches(self._batch_size, columns=self._columns, use_threads=False):
                while rows + batch.num_rows >= self._batch_size:
                    head = batch.slice(0, self._batch_size - rows)
                    yield pa.Table.from_batches([*waiting, head])
                    waiting, rows, batch = [], 0, batch.slice(head.num_rows)
                if batch.num_rows:
                    waiting.append(batch)
                    rows += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise unreadable(file.path, error) from None
        if waiting:
            yield pa.Table.from_batches(waiting)

    def _count_unknown(self, feature: str, count: int) -> None:
        self.unknown_ids[feature] = self.unknown_ids.get(feature, 0) + count


def iterate_rows(
    path: str | Path | Sequence[str | Path],
    spec: DatasetSpec,
    config: DataConfig,
    batch_size: int,
    carry: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> RowReader:
    """Read Parquet files row by row in order, as batches of up to ``batch_size`` rows, never padded.

    Args:
        path: a Parquet file or a folder of them (or several), local or URI; folders are read by file name.
        spec: features and labels, from the data set that the model was trained on.
        config: chosen features; lanes, shuffling and weights are ignored.
        batch_size: rows of a batch; the last one of each file may be shorter.
        carry: extra columns to return with the batches.
        labels: names of labels; those that the files lack are 0 with weight 0.

    Returns:
        A reader with ``rows``, the total number of rows; iterating gives (Batch, pyarrow.Table of the carried columns).

    Raises:
        UserError: for files, columns or names that are missing or of the wrong type; while iterating, for bad values.
    """
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    files = [file for each in paths for file in open_files(*locate(each))]
    return RowReader(files, spec, config, batch_size, carry, labels)
