"""Memory layout of one process's tables, and the gradients that a backward pass collects for them.

Names of sizes: T tables, F features, B bags (rows of a batch) per feature, N ids of a batch, U touched rows of all tables,
D_t columns of table t on this process, R_t its rows here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrm_mtl.core.clippy_defaults import LAMBDA_ABS, LAMBDA_REL


@dataclass(frozen=True)
class TableGroup:
    """Tables that are looked up together, concatenated in one buffer."""

    weights: Tensor
    """[sum of R_t * D_t] float32 or float16, row-major, table after table."""
    weight_offsets: Tensor
    """[T] int64 on the CPU: start of each table in ``weights``, in elements."""
    row_offsets: Tensor
    """[T + 1] int64 on the CPU: sums of R_t; also the start of each table's rows in a state with one float per row."""
    dims: Tensor
    """[T] int64 on the CPU: D_t."""
    feature_tables: Tensor
    """[F] int64 on the CPU: the table of each feature, ascending."""
    means: Tensor | None = None
    """[F] bool on the CPU: True for a feature whose bags are averaged; None for none. Kernels for CUDA have no means."""

    @property
    def tables(self) -> int:
        """Number of tables T."""
        return len(self.dims)

    def table(self, index: int) -> Tensor:
        """Weights of one table as a view [R_t, D_t]."""
        rows = int(self.row_offsets[index + 1] - self.row_offsets[index])
        dim, start = int(self.dims[index]), int(self.weight_offsets[index])
        return self.weights[start : start + rows * dim].view(rows, dim)

    def output_offsets(self) -> list[int]:
        """[F + 1] first column of each feature in a pooled output [B, sum of D over features], and the output's width."""
        offsets = [0]
        for table in self.feature_tables.tolist():
            offsets.append(offsets[-1] + int(self.dims[table]))
        return offsets


@dataclass
class RowGradients:
    """Gradient of a batch with respect to the touched rows, duplicates summed."""

    rows: Tensor
    """[U] int64: row within its table, ascending within each table; table after table."""
    table_offsets: Tensor
    """[T + 1] int64 on the CPU: start of each table's entries in ``rows``."""
    gradients: Tensor
    """[sum of U_t * D_t] float32: concatenated gradients of the rows, in the order of ``rows``."""
    square_sums: Tensor
    """[U] float32: sum of squares of each row's gradient over the columns on this process."""

    def gradient(self, group: TableGroup, index: int) -> Tensor:
        """Row gradients of one table as a view [U_t, D_t]."""
        start = 0
        for table in range(index):
            start += int(self.table_offsets[table + 1] - self.table_offsets[table]) * int(group.dims[table])
        touched = int(self.table_offsets[index + 1] - self.table_offsets[index])
        dim = int(group.dims[index])
        return self.gradients[start : start + touched * dim].view(touched, dim)

    def part(self, values: Tensor, index: int) -> Tensor:
        """Entries of table ``index`` in a [U] tensor, as a view [U_t]."""
        return values[int(self.table_offsets[index]) : int(self.table_offsets[index + 1])]

    def only(self, group: TableGroup, kept: Sequence[bool]) -> RowGradients:
        """The gradients of the tables with True in ``kept`` [T], as if the batch touched no row of the others."""
        some = [index for index, keep in enumerate(kept) if keep]
        counts = self.table_offsets.diff() * torch.tensor(kept)
        return RowGradients(
            rows=torch.cat([self.rows[:0], *(self.part(self.rows, index) for index in some)]),
            table_offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            gradients=torch.cat([self.gradients[:0], *(self.gradient(group, index).flatten() for index in some)]),
            square_sums=torch.cat([self.square_sums[:0], *(self.part(self.square_sums, index) for index in some)]),
        )

    def of_all_rows(self, group: TableGroup) -> RowGradients:
        """The gradients of every row of the tables: 0 for a row that the batch does not touch."""
        counts = group.row_offsets.diff()
        first_rows = torch.repeat_interleave(group.row_offsets[:-1], self.table_offsets.diff())
        places = self.rows + first_rows.to(self.rows.device)  # [U] among the rows of all tables
        total = int(group.row_offsets[-1])
        gradients = [
            self.gradients.new_zeros(int(rows), int(dim)) for rows, dim in zip(counts, group.dims, strict=True)
        ]
        for index, whole in enumerate(gradients):
            whole[self.part(self.rows, index)] = self.gradient(group, index)
        numbers = torch.arange(total) - torch.repeat_interleave(group.row_offsets[:-1], counts)
        return RowGradients(
            rows=numbers.to(self.rows.device),
            table_offsets=group.row_offsets.clone(),
            gradients=torch.cat([self.gradients[:0], *(whole.flatten() for whole in gradients)]),
            square_sums=self.square_sums.new_zeros(total).index_copy_(0, places, self.square_sums),
        )


NON_FINITE = -1.0
"""Factor of a table whose gradient is not finite; smaller than every real factor, so that it survives a MIN."""


KINDS = ("sgd", "adagrad", "clippy")
"""Updates that the native kernels implement, by their number there."""


@dataclass(frozen=True)
class Update:
    """Row-wise update of the kernels. All arithmetic in float32.

    With g a row's gradient, s the mean of its squares over the whole row (all columns, on all processes), a the row's
    accumulator: a' = a + s, d = a' (``standard``) or a (``delayed``), r = g / sqrt(d + eps) or g / (sqrt(d) + eps)
    (``eps_inside`` or not; 0 where g is 0), w <- w - lr * sigma * r, a <- a'.

    The fields, in this order and followed by the learning rate, are those of ``Update`` in csrc/layout.h: integers of 64
    bits, then float32.
    """

    kind: str = "clippy"
    """``clippy``, ``adagrad`` (sigma = 1), or ``sgd`` (r = g, sigma = 1, no accumulator)."""
    eps_inside: bool = True
    delayed: bool = False
    per_row: bool = False
    """True for one factor per row, False for one factor for all rows of the table in the global batch."""
    lambda_rel: float = LAMBDA_REL
    lambda_abs: float = LAMBDA_ABS
    eps: float = 0.0


ELEMENT_KINDS = ("adagrad", "adam", "rowwise_adam", "ftrl")
"""Updates with state per element that the native kernels for the CPU implement, by their number there."""


@dataclass(frozen=True)
class ElementUpdate:
    """Update of a rule that keeps state per element and never clips.

    The rule's own function defines it; all arithmetic is in float32. ``kind`` names the rule in ``ELEMENT_KINDS``, and each
    rule uses some of the numbers.
    """

    kind: str
    betas: tuple[float, float] = (0.0, 0.0)
    eps: float = 0.0
    beta: float = 0.0
    l1: float = 0.0
    l2: float = 0.0


def empty_gradients(group: TableGroup) -> RowGradients:
    """Gradient of a batch that touches no row."""
    device = group.weights.device
    return RowGradients(
        rows=torch.empty(0, dtype=torch.int64, device=device),
        table_offsets=torch.zeros(group.tables + 1, dtype=torch.int64),
        gradients=torch.empty(0, device=device),
        square_sums=torch.empty(0, device=device),
    )
