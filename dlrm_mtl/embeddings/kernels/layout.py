"""How the tables of one process lie in memory, and what a backward pass collects for them.

Names of sizes: T tables, F features, B bags (rows of a batch) per feature, N ids of a batch, U touched rows of all tables
together, D_t columns of table t on this process, R_t its rows here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlrm_mtl.core.clippy_defaults import LAMBDA_ABS, LAMBDA_REL


@dataclass(frozen=True)
class TableGroup:
    """Tables that are looked up together, one behind the other in one buffer."""

    weights: Tensor
    """[sum of R_t * D_t] float32 or float16, row-major, table after table."""
    weight_offsets: Tensor
    """[T] int64 on the CPU: where each table begins in ``weights``, in elements."""
    row_offsets: Tensor
    """[T + 1] int64 on the CPU: sums of R_t; where each table's rows begin in a state with one float per row."""
    dims: Tensor
    """[T] int64 on the CPU: D_t."""
    feature_tables: Tensor
    """[F] int64 on the CPU: the table of each feature, ascending."""

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
        """[F + 1] first column of each feature in a pooled output [B, sum of D over features], and the width."""
        offsets = [0]
        for table in self.feature_tables.tolist():
            offsets.append(offsets[-1] + int(self.dims[table]))
        return offsets


@dataclass
class RowGradients:
    """The gradient of a batch with respect to the rows it touched, duplicates summed."""

    rows: Tensor
    """[U] int64: row within its table, ascending within each table; table after table."""
    table_offsets: Tensor
    """[T + 1] int64 on the CPU: where each table's entries begin in ``rows``."""
    gradients: Tensor
    """[sum of U_t * D_t] float32: the rows' gradients one after the other, in the order of ``rows``."""
    square_sums: Tensor
    """[U] float32: sum of the squares of each row's gradient over the columns that this process holds."""

    def gradient(self, group: TableGroup, index: int) -> Tensor:
        """Row gradients of one table as a view [U_t, D_t]."""
        start = 0
        for table in range(index):
            start += int(self.table_offsets[table + 1] - self.table_offsets[table]) * int(group.dims[table])
        touched = int(self.table_offsets[index + 1] - self.table_offsets[index])
        dim = int(group.dims[index])
        return self.gradients[start : start + touched * dim].view(touched, dim)

    def part(self, values: Tensor, index: int) -> Tensor:
        """The entries of table ``index`` in a [U] tensor, as a view [U_t]."""
        return values[int(self.table_offsets[index]) : int(self.table_offsets[index + 1])]


NON_FINITE = -1.0
"""Stands for the factor of a table whose gradient is not finite; smaller than every factor, so that it survives a MIN."""


KINDS = ("sgd", "adagrad", "clippy")
"""The updates that the native kernels know, by their number there."""


@dataclass(frozen=True)
class Update:
    """The row-wise update as kernels know it. All arithmetic in float32.

    With g a row's gradient, s the mean of its squares over the whole row (all columns, wherever they are), a the row's
    accumulator: a' = a + s, d = a' (``standard``) or a (``delayed``), r = g / sqrt(d + eps) or g / (sqrt(d) + eps)
    (``eps_inside`` or not; 0 where g is 0), w <- w - lr * sigma * r, a <- a'.

    The fields, in this order and with the learning rate behind them, are those of ``Update`` in csrc/layout.h: integers of 64
    bits, then float32.
    """

    kind: str = "clippy"
    """``clippy``, ``adagrad`` (sigma = 1), or ``sgd`` (r = g, sigma = 1, no accumulator)."""
    eps_inside: bool = True
    delayed: bool = False
    per_row: bool = False
    """Whether each row has a factor of its own, instead of one for all rows of the table in the global batch."""
    lambda_rel: float = LAMBDA_REL
    lambda_abs: float = LAMBDA_ABS
    eps: float = 0.0


def empty_gradients(group: TableGroup) -> RowGradients:
    """The gradient of a batch that touches no row."""
    device = group.weights.device
    return RowGradients(
        rows=torch.empty(0, dtype=torch.int64, device=device),
        table_offsets=torch.zeros(group.tables + 1, dtype=torch.int64),
        gradients=torch.empty(0, device=device),
        square_sums=torch.empty(0, device=device),
    )
