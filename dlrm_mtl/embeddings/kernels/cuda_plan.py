"""Sizes and offsets of a group of tables, kept on its device for the CUDA kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
import triton
from torch import Tensor

from dlrm_mtl.embeddings.kernels.layout import TableGroup

TILE = 1024
"""Number of elements (rows times columns) of a tile: 8 per thread of 4 warps."""
WIDEST_TILE = 256
"""Largest number of columns of a tile."""


@dataclass(frozen=True)
class Plan:
    """Sizes and offsets of a :class:`TableGroup` on its device, for the kernels."""

    table_quads: Tensor
    """[T] int64: D_t / 4."""
    table_units: Tensor
    """[T] int64: D_t in units."""
    weight_quads: Tensor
    """[T] int64: start of each table in the weights, in quads."""
    row_offsets: Tensor
    """[T + 1] int64: sums of the tables' rows."""
    feature_tables: Tensor
    """[F] int64: table of each feature."""
    feature_units: Tensor
    """[F] int64: first column of each feature in a pooled output, in units."""
    equal_bases: Tensor
    """[T] int64: zeros."""
    host_quads: list[int]
    """``table_quads`` on the host."""
    tables: int
    features: int
    total_rows: int
    width: int
    """Number of columns of a pooled output."""
    width_units: int
    unit_quads: int
    """Greatest common divisor of the D_t, in quads."""
    widest_quads: int
    """D of the widest table, in quads."""
    tile_rows: int
    tile: dict[str, Any]
    """Keyword arguments of the kernels that process tiles."""

    @property
    def dense(self) -> bool:
        """True if there are not many more units than features."""
        return self.width_units <= 4 * self.features

    def bases(self, offsets: list[int]) -> tuple[Tensor, int]:
        """Offsets of concatenated rows, for tables whose rows are ``offsets[t]`` to ``offsets[t + 1]``.

        Returns:
            [T] int64, to be added to a row's number times its quads to get its start in quads; and the number of floats.
        """
        quads = self.host_quads
        if self.widest_quads == self.unit_quads:
            return self.equal_bases, offsets[-1] * self.widest_quads * 4
        bases, end = [], 0
        for table, width in enumerate(quads):
            bases.append(end - offsets[table] * width)
            end += (offsets[table + 1] - offsets[table]) * width
        return torch.tensor(bases).to(self.table_quads.device, non_blocking=True), end * 4


# A group is used for thousands of batches; its plan is dropped together with the group.
_plans: dict[int, tuple[ref[TableGroup], Plan]] = {}


def plan_of(group: TableGroup) -> Plan:
    """Cached plan of a group.

    Raises:
        ValueError: a table's width or offset is not a multiple of 4.
    """
    key = id(group)
    known = _plans.get(key)
    if known is not None and known[0]() is group:
        return known[1]
    plan = _make_plan(group)
    _plans[key] = ref(group, lambda _: _plans.pop(key, None)), plan
    return plan


def _make_plan(group: TableGroup) -> Plan:
    for table, dim in enumerate(group.dims.tolist()):
        if dim < 4 or dim % 4:
            raise ValueError(f"table {table} has dim {dim}: the CUDA kernels need a positive multiple of 4")
    if (group.weight_offsets % 4).any():
        raise ValueError(f"weight_offsets {group.weight_offsets.tolist()} must be multiples of 4")
    device = group.weights.device
    columns = group.output_offsets()
    # Tables share a launch. A tile as wide as the mean wastes few threads on narrow tables; wide ones take several rounds.
    mean = int(group.dims.float().mean().ceil()) if group.tables else 4
    tile_columns = min(max(triton.next_power_of_2(mean), 4), WIDEST_TILE)
    quads = (group.dims // 4).tolist()
    unit = math.gcd(*quads) or 1
    return Plan(
        table_quads=(group.dims // 4).to(device),
        table_units=(group.dims // 4 // unit).to(device),
        weight_quads=(group.weight_offsets // 4).to(device),
        row_offsets=group.row_offsets.to(device),
        feature_tables=group.feature_tables.to(device),
        feature_units=torch.tensor(columns[:-1], dtype=torch.int64).to(device) // (4 * unit),
        equal_bases=torch.zeros(group.tables, dtype=torch.int64, device=device),
        host_quads=quads,
        tables=group.tables,
        features=len(group.feature_tables),
        total_rows=int(group.row_offsets[-1]),
        width=columns[-1],
        width_units=columns[-1] // (4 * unit),
        unit_quads=unit,
        widest_quads=max(quads, default=0),
        tile_rows=TILE // tile_columns,
        tile={"ROWS": TILE // tile_columns, "COLUMNS": tile_columns},
    )
