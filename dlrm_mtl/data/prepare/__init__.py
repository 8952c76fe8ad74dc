"""Adapters that turn raw public data sets into the layout the reader reads: one file each, and one line here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dlrm_mtl.data.prepare import kuairand
from dlrm_mtl.data.prepare.build import Progress


class Adapter(Protocol):
    """Reads raw files from the folder ``input`` and writes the data set to the folder ``output``, all or nothing."""

    def __call__(self, input: Path, output: Path, progress: Progress = ...) -> None: ...


ADAPTERS: dict[str, Adapter] = {
    "kuairand": kuairand.prepare,
}
