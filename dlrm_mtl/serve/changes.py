"""Changed rows of a bundle's tables: a file beside them, so that a version needs no copy of the tables.

``changes.safetensors`` holds ``rows.NAME`` [K] int64, ascending, and ``values.NAME`` [K, dim] float32 for a table, and
``id_rows.NAME`` and ``ids.NAME`` [K] int64 for the unbounded ids of rows. They replace what ``tables.safetensors`` has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.bundle import write_file
from dlrm_mtl.serve.tables import ServedTable
from dlrm_mtl.serve.tensor_files import REMEDY, map_tensors, write_tensors
from dlrm_mtl.versions.content import Rows


@dataclass(frozen=True)
class TableChanges:
    """Rows that replace those of tables, and ids that replace those of rows."""

    tables: Mapping[str, Rows] = field(default_factory=dict)
    """Rows by name of the table."""
    ids: Mapping[str, Rows] = field(default_factory=dict)
    """Ids by name of the vocabulary."""

    @property
    def size(self) -> int:
        """Number of bytes of all values."""
        return sum(each.values.nbytes for each in (*self.tables.values(), *self.ids.values()))

    def then(self, later: TableChanges) -> TableChanges:
        """These changes, and after them ``later``."""
        return TableChanges(_merged(self.tables, later.tables), _merged(self.ids, later.ids))

    def of_table(self, name: str, table: ServedTable) -> ServedTable:
        """``table``, called ``name``, with its changes."""
        changed = self.tables.get(name)
        if changed is None:
            return table
        try:
            return table.with_rows(changed.rows, changed.values.float())
        except ValueError as error:
            raise UserError(f"changes of table {name} do not fit it ({error}); {REMEDY}.") from None

    def of_ids(self, name: str, ids: Tensor) -> Tensor:
        """``ids`` [rows] of the vocabulary ``name`` with their changes."""
        changed = self.ids.get(name)
        return ids if changed is None else ids.index_copy(0, changed.rows, changed.values)


def write_changes(path: Path, changes: TableChanges, run: str, step: int) -> None:
    """Write the changes; raises OSError.

    Args:
        path: file to write.
        changes: rows and ids.
        run: name of the run, for the header.
        step: step of the version, for the header.
    """
    tensors = {}
    for rows, values, parts in (("rows", "values", changes.tables), ("id_rows", "ids", changes.ids)):
        for name in sorted(parts):
            tensors[f"{rows}.{name}"], tensors[f"{values}.{name}"] = parts[name].rows, parts[name].values
    write_file(path, lambda file: write_tensors(file, tensors, run, step))


def read_changes(path: Path) -> TableChanges:
    """Changes in a file whose bytes have been checked; none if there is no file."""
    if not path.exists():
        return TableChanges()
    tensors = map_tensors(path)
    found: dict[str, dict[str, Rows]] = {"rows": {}, "id_rows": {}}
    for name, rows in tensors.items():
        kind, _, own = name.partition(".")
        if kind in found:
            found[kind][own] = Rows(rows, tensors[f"{'values' if kind == 'rows' else 'ids'}.{own}"])
    return TableChanges(found["rows"], found["id_rows"])


def _merged(old: Mapping[str, Rows], new: Mapping[str, Rows]) -> dict[str, Rows]:
    merged = dict(old)
    for name, later in new.items():
        before = merged.get(name)
        if before is None:
            merged[name] = later
            continue
        kept = ~torch.isin(before.rows, later.rows, assume_unique=True)
        rows, order = torch.cat([before.rows[kept], later.rows]).sort()
        merged[name] = Rows(rows, torch.cat([before.values[kept], later.values])[order])
    return merged
