"""The tables of a bundle: rows in any format, mapped from the file, some of them replaced by an overlay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.embeddings.row_formats import FORMATS, FormatName, RowFormat, sums_of
from dlrm_mtl.serve.pages import PagedFile, PagedRows
from dlrm_mtl.serve.tensor_files import REMEDY, header_size, tensor_places


@dataclass(frozen=True)
class Overlay:
    """Rows that replace others of a table."""

    rows: Tensor
    """[K] int64, ascending, each once."""
    stored: Tensor
    """[K, row_bytes] uint8: the rows in the table's format."""


class ServedTable:
    """A table of a bundle; a :class:`~dlrm_mtl.embeddings.local_tables.LookupTable`.

    It is not changed once it is made: :meth:`with_rows` returns another one, which shares the base. Methods may be called from
    several threads.

    Args:
        base: the rows as stored.
        dim: number of columns.
        format: format of the rows.
        overlay: rows that replace some of the base.

    Raises:
        DamagedPageError: in every lookup, if a page that it needs does not have its checksum.
        IndexError: in every lookup, if an id is not the number of a row.
    """

    def __init__(self, base: PagedRows, dim: int, format: RowFormat, overlay: Overlay | None = None) -> None:
        self._base, self._overlay = base, overlay
        self.dim, self.format = dim, format

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._base.stored)

    @property
    def plain(self) -> Tensor | None:
        """[rows, dim] float32: the rows in the file, which :meth:`check_rows` checks; None if these are others or replaced."""
        if self.format.name != "fp32" or self._overlay is not None:
            return None
        return self._base.stored.view(torch.float32)

    def check_rows(self, rows: Tensor) -> None:
        """Check ``rows`` [N] int64 of the base; raises :class:`~dlrm_mtl.serve.pages.DamagedPageError`."""
        self._base.check(rows)

    def sums(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Sums [B, dim] float32 of the rows of bags, added in the order of the ids; 0 for an empty bag.

        Args:
            ids: [N] int64, numbers of rows.
            offsets: [B] int64: first id of each bag.
        """
        if self._overlay is not None and self._replaced(ids)[1].any():
            return sums_of(self.vectors(ids), offsets)
        self._base.check(ids)
        return self.format.sums(self._base.stored, self.dim, ids, offsets)

    def vectors(self, ids: Tensor) -> Tensor:
        """Rows [N, dim] float32 of ``ids`` [N] int64."""
        if self._overlay is not None:
            places, replaced = self._replaced(ids)
            if replaced.any():
                kept = ~replaced
                out = torch.empty(len(ids), self.dim)
                out[replaced] = self.format.vectors(self._overlay.stored, self.dim, places[replaced])
                out[kept] = self._of_base(ids[kept])
                return out
        return self._of_base(ids)

    def stored(self, first: int, stop: int) -> Tensor:
        """[stop - first, row_bytes] uint8: rows in the table's format, with those of the overlay."""
        rows = torch.arange(first, stop)
        self._base.check(rows)
        part = self._base.stored[first:stop]
        if self._overlay is None:
            return part
        places, replaced = self._replaced(rows)
        part = part.clone()
        part[replaced] = self._overlay.stored[places[replaced]]
        return part

    def with_rows(self, rows: Tensor, values: Tensor) -> ServedTable:
        """A table in which some rows are others; the base is shared, not copied.

        Encoding a row depends on the row only, so the result is the table that an export of the new values has, bit for bit.

        Args:
            rows: [K] int64, ascending, each once.
            values: [K, dim] float32.

        Raises:
            ValueError: rows are not ascending or not in the table, shapes do not fit, or a value cannot be encoded.
        """
        if values.shape != (len(rows), self.dim):
            raise ValueError(f"values are {list(values.shape)}; [{len(rows)}, {self.dim}] is expected")
        if len(rows) and (bool((rows.diff() <= 0).any()) or int(rows[0]) < 0 or int(rows[-1]) >= self.rows):
            raise ValueError(f"rows must ascend, each once, within 0..{self.rows - 1}")
        stored = self.format.encode(values.contiguous())
        if self._overlay is not None:
            old = self._overlay
            kept = ~torch.isin(old.rows, rows, assume_unique=True)
            merged, order = torch.cat([old.rows[kept], rows]).sort()
            rows, stored = merged, torch.cat([old.stored[kept], stored])[order]
        return ServedTable(self._base, self.dim, self.format, Overlay(rows, stored) if len(rows) else None)

    def check(self) -> None:
        """Check all rows of the base now; raises :class:`~dlrm_mtl.serve.pages.DamagedPageError`."""
        self._base.check_all()

    def _replaced(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[N] positions in the overlay, and a mask of the ids that are there."""
        assert self._overlay is not None
        places = torch.searchsorted(self._overlay.rows, ids).clamp_(max=len(self._overlay.rows) - 1)
        return places, self._overlay.rows[places] == ids

    def _of_base(self, ids: Tensor) -> Tensor:
        self._base.check(ids)
        return self.format.vectors(self._base.stored, self.dim, ids)


def check_format(format: str) -> None:
    """Refuse a format of tables that is not known; raises :class:`UserError`."""
    if format not in FORMATS:
        raise UserError(f"--tables {format}: there is no such format; choose {', '.join(FORMATS)}.")


class StoredTables:
    """The file of a bundle with its tables and the ids of rows; nothing but its header is read yet.

    Args:
        path: the file, whose size has been checked.
        digests: file with the digests of its pages, whose bytes have been checked.
        format: format of the rows.

    Raises:
        UserError: the header is damaged.
    """

    def __init__(self, path: Path, digests: Path, format: FormatName) -> None:
        self._file = PagedFile(path, digests)
        self._file.check(0, 8)
        self._file.check(0, min(header_size(path), len(self._file.content)))
        self._places = tensor_places(path)
        self._format = FORMATS[format]

    def table(self, name: str, rows: int, dim: int) -> ServedTable:
        """A table; raises :class:`UserError` if it has another shape."""
        place = self._places.get(f"tables.{name}")
        row_bytes = self._format.row_bytes(dim)
        found = (place.shape[0] if place.shape else 0, place.stop - place.start) if place is not None else None
        if place is None or found != (rows, rows * row_bytes):
            raise UserError(f"{self._file.path}: table {name} is not one of {rows:,} rows and {dim} columns; {REMEDY}.")
        return ServedTable(PagedRows(self._file, place.start, rows, row_bytes), dim, self._format)

    def ids(self, name: str) -> Tensor:
        """[rows] int64: the unbounded id that each row of a vocabulary's table has, all of them checked."""
        place = self._places.get(f"ids.{name}")
        if place is None or place.dtype != torch.int64:
            raise UserError(f"{self._file.path}: has no ids of the vocabulary {name}; {REMEDY}.")
        self._file.check(place.start, place.stop)
        return place.of(self._file.content)
