"""The frame of an adapter that works out of core: atomic output, a database on disk, the description at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, SplitSpec
from dlrm_mtl.data.statistics import describe
from dlrm_mtl.prepare.common.duck import SPLITS, one_row, workspace
from dlrm_mtl.prepare.common.io import Progress, output_folder


@dataclass(frozen=True)
class Preparation:
    """A data set being prepared."""

    folder: Path
    """Folder of its files."""
    connection: duckdb.DuckDBPyConnection
    """A database on disk, see :func:`~dlrm_mtl.prepare.common.duck.workspace`."""
    progress: Progress

    def describe(self, spec: DatasetSpec, done: float) -> None:
        """Write dataset.yaml after all other files, at the fraction ``done`` of the whole, and close the database."""
        self.connection.close()
        self.progress("describing", done)
        describe(self.folder, spec)


@contextmanager
def preparing(output: Path, progress: Progress, memory: str | None, threads: int | None) -> Iterator[Preparation]:
    """Open the folder, database and progress for making the data set ``output``, which appears when the block ends.

    Raises :class:`UserError` if ``output`` is not empty or cannot be written, or ``memory`` is too small.
    """
    with output_folder(output) as folder, workspace(folder, memory, threads) as connection:
        yield Preparation(folder, connection, progress)
    progress("done", 1.0)


def comma_separated(text: str) -> list[str]:
    """Names in the value of an option such as ``--countries NL,ES``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def require_training(adapter: str, **shares: float) -> None:
    """Raise :class:`UserError` if ``shares``, by option, leave no rows for training."""
    if sum(shares.values()) < 1:
        return
    exact = len(shares) > 1
    options = " and ".join(
        f"--{name.replace('_', '-')} {share if exact else format(share, 'g')}" for name, share in shares.items()
    )
    verb, them = ("leave", "them") if exact else ("leaves", "it")
    raise UserError(f"prepare {adapter}: {options} {verb} nothing to train on; lower {them}.")


def refuse_rows(connection: duckdb.DuckDBPyConnection, table: str, condition: str, place: Path, what: str) -> None:
    """Raise :class:`UserError` if any row of ``table`` meets ``condition``; ``what`` ends the sentence."""
    (wrong,) = one_row(connection, f"SELECT count(*) FROM {table} WHERE {condition}")
    if wrong:
        raise UserError(f"{place}: {wrong:,} rows have {what}")


def refuse_empty(rows: Mapping[str, int], remedy: str) -> None:
    """Raise :class:`UserError` if a split (name -> rows) is empty."""
    for split, count in rows.items():
        if count == 0:
            raise UserError(f"prepare: the split {split!r} would hold no rows; {remedy}.")


def splits_in_folders(about: Mapping[str, str] | None = None) -> dict[str, SplitSpec]:
    """The three splits, in folders of their names, with descriptions ``about`` each."""
    return {name: SplitSpec(folder=name, description=(about or {}).get(name)) for name in SPLITS}


def sparse_features(sizes: Mapping[str, int], names: Sequence[str]) -> list[FeatureSpec]:
    """Sparse features, with their vocabularies' ``sizes``."""
    return [FeatureSpec(name=name, kind="sparse", vocabulary_size=sizes[name]) for name in names]
