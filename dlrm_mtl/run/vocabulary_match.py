"""Comparison of a run's vocabularies with those of an earlier run: which rows of a table stand for the same values."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from dlrm_mtl.data.contract import Contract
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE, Values, read_values, rows_by_value, vocabularies_digest
from dlrm_mtl.storage.filesystems import locate


@dataclass(frozen=True)
class Match:
    """Relation of two vocabularies."""

    kind: Literal["same", "values", "unknown", "changed"]
    """``same``: every id stands for the same value. ``values``: see ``rows``. ``unknown``: nothing tells that ids have changed.
    ``changed``: they have, and the values behind them are not known."""
    reason: str = ""
    """Why the values are not known."""
    rows: NDArray[np.int64] | None = None
    """For each new id the old one of the same value, -1 for a new value."""


class VocabularyMatch:
    """The vocabularies of two runs; for one process.

    Args:
        run: name of the earlier run, for sentences.
        was: contract of the earlier run; None if its checkpoint has none.
        now: contract of the new run.
        dataset: of the new run.
        file: vocabularies.parquet of the earlier run, if it is not in the folder of its data set.
    """

    def __init__(self, run: str, was: Contract | None, now: Contract, dataset: Dataset, file: str | None) -> None:
        self.run, self.was, self.now, self.dataset, self.file = run, was, now, dataset, file

    def match(self, owner_before: str | None, owner: str | None, rows_before: int, rows: int) -> Match:
        """Compare two vocabularies.

        Args:
            owner_before: feature that owned the vocabulary in the earlier run.
            owner: feature that owns it now.
            rows_before: rows of the table in the earlier run.
            rows: rows of the table now.

        Raises:
            UserError: a file cannot be read, or does not fit its table.
        """
        if self.was is None or owner_before is None or owner is None:
            return Match("unknown", "the checkpoint does not say whose ids they are")
        prints = self.was.dataset.feature(owner_before).fingerprint, self.now.dataset.feature(owner).fingerprint
        if None not in prints and prints[0] == prints[1]:
            return Match("same")
        digests = self.was.vocabularies, self.now.vocabularies
        if digests == (None, None) and self.file is None:
            reason = "neither data set has a vocabularies.parquet"
            return Match("unknown" if None in prints else "changed", reason)
        if self.file is None and owner_before == owner and digests[0] == digests[1]:
            return Match("same")
        if isinstance(self._old_file, str):
            return Match("changed", self._old_file)
        old, new = self._old_values(owner_before), self._new_values(owner)
        if old is not None and new is not None:
            return Match("values", rows=rows_by_value(old, new, rows_before, rows))
        if old is None and new is None and None in prints:  # such as hashed ids
            return Match("unknown", f"{VOCABULARIES_FILE} has none of {owner!r}")
        place = self._old_file[1] if old is None else f"{self.dataset.path}/{VOCABULARIES_FILE}"
        return Match("changed", f"{place} has none of {(owner_before if old is None else owner)!r}")

    @cached_property
    def _old_file(self) -> tuple[fs.FileSystem, str] | str:
        """The earlier run's file, or the reason why there is none."""
        if self.file is not None:
            return locate(self.file)
        if self.was is None or self.was.vocabularies is None:
            return f"{self.run} did not record the vocabularies that it was trained with"
        filesystem, folder = locate(self.was.path)
        place = os.path.join(self.was.path, VOCABULARIES_FILE)
        if vocabularies_digest(filesystem, folder) != self.was.vocabularies:
            return f"{place} is no longer the file that {self.run} was trained with"
        return filesystem, f"{folder}/{VOCABULARIES_FILE}"

    def _old_values(self, owner: str) -> Values | None:
        assert not isinstance(self._old_file, str)
        return read_values(*self._old_file, owner)

    def _new_values(self, owner: str) -> Values | None:
        if self.now.vocabularies is None:
            return None
        return read_values(self.dataset.filesystem, f"{self.dataset.path}/{VOCABULARIES_FILE}", owner)
