"""Files of a bundle that are checked page by page: mapped into memory, each page compared with its digest on first use.

So a table of many gigabytes is ready at once, and still no byte is used before it was checked. The digests, SHA-256 of each
page of :data:`PAGE` bytes, are a file of their own, whose checksum is in ``bundle.json``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.tensor_files import REMEDY

PAGE = 8192
"""Number of bytes with one digest; the last page of a file may be shorter."""
DIGEST = 32
"""Number of bytes of a digest."""
SMALL = 64 * PAGE
"""Size in bytes up to which a part of a file is checked whole when it is first used."""


class DamagedPageError(UserError):
    """A page of a mapped file does not have its checksum; what was asked for is not used."""


def write_digests(path: Path, digests: Path) -> None:
    """Write the digests of the pages of the file ``path``."""
    with open(path, "rb") as file, open(digests, "wb") as out:
        while page := file.read(PAGE):
            out.write(hashlib.sha256(page).digest())


def digests_size(size: int) -> int:
    """Size in bytes of the file of digests for a file of ``size`` bytes."""
    return -(-size // PAGE) * DIGEST


class PagedFile:
    """A file that is mapped into memory, with the digests of its pages. Methods may be called from several threads.

    Args:
        path: the file; its size has been checked.
        digests: file of the digests, whose bytes have been checked.
    """

    def __init__(self, path: Path, digests: Path) -> None:
        self.path = path
        # Copy-on-write, and nothing writes: torch warns of read-only memory.
        mapped = np.memmap(path, np.uint8, mode="c")
        self.content: Tensor = torch.from_numpy(mapped)
        """[size] uint8: the bytes, to be used after :meth:`check`."""
        self._bytes = memoryview(mapped.data)
        self._digests = memoryview(np.memmap(digests, np.uint8, mode="r").data)
        self._checked = np.zeros(-(-len(mapped) // PAGE), np.bool_)

    def check(self, start: int, stop: int) -> None:
        """Check the bytes ``start`` to ``stop``; raises :class:`DamagedPageError`."""
        if stop > start:
            self.check_pages(np.arange(start // PAGE, (stop - 1) // PAGE + 1))

    def check_pages(self, pages: NDArray[np.int64]) -> None:
        """Check the pages with these numbers; raises :class:`DamagedPageError`."""
        for page in pages[~self._checked[pages]].tolist():
            start = page * PAGE
            found = hashlib.sha256(self._bytes[start : start + PAGE]).digest()
            if found != self._digests[page * DIGEST : (page + 1) * DIGEST]:
                raise DamagedPageError(
                    f"{self.path}: the page from byte {start:,} does not have its checksum; {REMEDY}."
                )
            self._checked[page] = True

    def are_checked(self, pages: NDArray[np.int64]) -> bool:
        """True if all pages with these numbers have been checked."""
        return bool(self._checked[pages].all())


class PagedRows:
    """Rows of equal size in a :class:`PagedFile`, each checked before its first use.

    Args:
        file: the file.
        start: first byte of the rows.
        rows: number of rows.
        row_bytes: size in bytes of a row.
    """

    def __init__(self, file: PagedFile, start: int, rows: int, row_bytes: int) -> None:
        self._file, self._start, self._row_bytes = file, start, row_bytes
        stop = start + rows * row_bytes
        self._pages = slice(start // PAGE, -(-stop // PAGE))
        self._small = stop - start <= SMALL
        self._complete = stop == start
        self.stored: Tensor = file.content[start:stop].view(rows, row_bytes)
        """[rows, row_bytes] uint8."""

    def check(self, rows: Tensor) -> None:
        """Check ``rows`` [N] int64, which exist; raises :class:`DamagedPageError`."""
        if self._complete:
            return
        if self._small:
            return self.check_all()
        starts = rows.numpy() * self._row_bytes + self._start
        first, last = starts // PAGE, (starts + (self._row_bytes - 1)) // PAGE
        if self._file.are_checked(first) and self._file.are_checked(last) and self._row_bytes <= PAGE:
            return
        between = [np.minimum(first + step, last) for step in range(1, self._row_bytes // PAGE + 1)]
        self._file.check_pages(np.unique(np.concatenate([first, *between, last])))

    def check_all(self) -> None:
        """Check all rows; raises :class:`DamagedPageError`."""
        self._file.check_pages(np.arange(self._pages.start, self._pages.stop))
        self._complete = True
