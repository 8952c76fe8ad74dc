"""Marks of the rows of sharded tables that change, on the process that holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlrm_mtl.embeddings.kernels.layout import RowGradients
from dlrm_mtl.embeddings.torchrec.shards import LocalTables


@dataclass(frozen=True)
class ChangedRows:
    """Rows of one table that have changed, as far as a shard on this process holds them: K rows with D of its columns."""

    table: str
    """The table's own name."""
    rows: Tensor
    """[K] int64 on the CPU: rows in the whole table, ascending."""
    column: int
    """First of the D columns in the whole table."""
    values: Tensor
    """[K, D] on the CPU: a copy of the weights."""


class TouchedMarks:
    """One mark for each row of the local shards: True if the row may have changed since the marks were cleared.

    All parts of a row that is split by columns are marked alike, as all of them see the same ids.

    Args:
        tables: shards of this process.
    """

    def __init__(self, tables: Sequence[LocalTables]) -> None:
        self._tables = tables
        self._marks = [
            torch.zeros(int(local.group.row_offsets[-1]), dtype=torch.bool, device=local.group.weights.device)
            for local in tables
        ]

    def add(self, gradients: Sequence[RowGradients]) -> None:
        """Mark the rows with ``gradients``, those of each of the local tables."""
        for marks, local, gradient in zip(self._marks, self._tables, gradients, strict=True):
            counts = gradient.table_offsets.diff()
            shifts = torch.repeat_interleave(local.group.row_offsets[:-1], counts)
            marks.index_fill_(0, gradient.rows + shifts.to(marks.device), True)

    def mark(self, number: int, index: int, rows: Tensor) -> None:
        """Mark ``rows`` [N] of the shard ``index`` of the local tables ``number``."""
        self._of_shard(number, index).index_fill_(0, rows, True)

    def changed(self, replicated: bool) -> Iterator[ChangedRows]:
        """Copies of the marked rows, shard by shard.

        Args:
            replicated: True to include tables that every process holds whole.
        """
        for number, local in enumerate(self._tables):
            if isinstance(local.source, nn.Parameter) and not replicated:
                continue
            for index, shard in enumerate(local.shards):
                rows = self._of_shard(number, index).nonzero().flatten()
                if not len(rows):
                    continue
                values = local.group.table(index).index_select(0, rows)
                name = shard.table.rpartition(".")[2]
                yield ChangedRows(name, rows.cpu() + shard.row, shard.column, values.cpu())

    def clear(self) -> None:
        """Remove all marks."""
        for marks in self._marks:
            marks.zero_()

    def _of_shard(self, number: int, index: int) -> Tensor:
        offsets = self._tables[number].group.row_offsets
        return self._marks[number][int(offsets[index]) : int(offsets[index + 1])]
