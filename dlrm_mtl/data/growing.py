"""Data that grows: which files of a folder are next, when every file is to be trained on exactly once.

New Parquet files arrive in a split's folder, by name in the order in which they are to be used, such as
``2024-03-02/part-0.parquet``. A *round* trains on all files that are there and have not been used. What was used is remembered
in :class:`Consumed`, which belongs in a run's checkpoint. Files that come while a round runs are the next round's.

Round ``n`` is to the loader a split of its own, one epoch: the order of its rows is a pure function of (seed, n, step), so a
round that was interrupted is resumed by listing the same files and seeking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.parquet as pq

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import FOOTER_THREADS, DataFile, Dataset, Split, list_files, read_footer
from dlrm_mtl.data.parquet_guard import examining
from dlrm_mtl.storage.filesystems import is_local


@dataclass(frozen=True)
class UsedFile:
    """A file that a round uses, and how to tell whether it is still the same one."""

    name: str
    """Path relative to the split's folder."""
    rows: int
    fingerprint: str
    """Of its size and of the places and sizes of all columns, from its footer."""


@dataclass
class Consumed:
    """What a run has trained on; as plain values in a checkpoint's ``progress.json``, see :meth:`state`."""

    done: list[UsedFile] = field(default_factory=list)
    """Files of finished rounds, in the order of their use."""
    rounds: int = 0
    """Rounds that are finished; the current one, if any, has this number, which stands for the epoch."""
    current: list[UsedFile] = field(default_factory=list)
    """Files of the round that has begun."""

    def state(self) -> dict[str, Any]:
        """As values for JSON."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Consumed:
        """The inverse of :meth:`state`; nothing was consumed if ``state`` is empty."""
        done, current = ([UsedFile(**file) for file in state.get(key, [])] for key in ("done", "current"))
        return cls(done, state.get("rounds", 0), current)

    def finish_round(self) -> None:
        """All rows of the current round have been trained on."""
        self.done += self.current
        self.current = []
        self.rounds += 1


@dataclass(frozen=True)
class Round:
    """What to train on next."""

    split: Split | None
    """The files of this round, for a :class:`~dlrm_mtl.data.reader.BatchLoader`; None if there is nothing to train on."""
    remarks: list[str]
    """Sentences about files that were left for the next round."""


def next_round(dataset: Dataset, split: str, consumed: Consumed) -> Round:
    """The round that has begun, as it was, or else a new one of all files that are not consumed.

    A new round is entered into ``consumed.current``. The folder may grow between two looks at it, so one process calls this
    first, and the others with the state that it has left: they get the same files, or an error.

    Raises:
        UserError: there is no such split; a file of the round that has begun is gone or another one; a file that was
            consumed has changed; or a new file's name comes before that of a consumed one.
    """
    folder = dataset.folder(split)
    present = [path[len(folder) + 1 :] for path in list_files(dataset.filesystem, folder)]
    if consumed.current:
        found = _footers(dataset, [f"{folder}/{file.name}" for file in consumed.current])
        same = [_same(folder, file, now) for file, now in zip(consumed.current, found, strict=True)]
        return Round(Split(split, dataset.spec, tuple(same)), [])
    _refuse_changes(dataset, folder, consumed.done, set(present))
    known = {file.name for file in consumed.done}
    new = [name for name in present if name not in known]
    files: list[DataFile] = []
    remarks: list[str] = []
    for file in _footers(dataset, [f"{folder}/{name}" for name in new]):
        if isinstance(file, UserError):
            # Names give the order: what comes after a file that is still being written has to wait with it.
            waiting = len(new) - len(files)
            remarks.append(f"{file} It and what comes after it, {waiting} file(s), are left for the next round.")
            break
        files.append(file)
    if sum(file.rows for file in files) == 0:
        return Round(None, remarks)
    _refuse_late(folder, files[0].path[len(folder) + 1 :], consumed.done)
    consumed.current = [describe(file, folder) for file in files]
    return Round(Split(split, dataset.spec, tuple(files)), remarks)


def describe(file: DataFile, folder: str) -> UsedFile:
    """What to remember of ``file``."""
    with examining(file.path):
        return UsedFile(file.path[len(folder) + 1 :], file.rows, _fingerprint(file.size, file.metadata))


def _footers(dataset: Dataset, paths: Sequence[str]) -> Iterator[DataFile | UserError]:
    def read(path: str) -> DataFile | UserError:
        try:
            return read_footer(dataset.filesystem, path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        yield from pool.map(read, paths)


def _same(folder: str, file: UsedFile, found: DataFile | UserError) -> DataFile:
    if isinstance(found, UserError):
        raise found
    if describe(found, folder) != file:
        raise UserError(
            f"{found.path}: the file has changed since the round that uses it began; put the old one back to resume."
        )
    return found


def _refuse_changes(dataset: Dataset, folder: str, done: Sequence[UsedFile], present: set[str]) -> None:
    """Files that were consumed may be removed, but not replaced: the new rows would never be seen."""
    if not is_local(dataset.filesystem):
        done = done[-1:]  # a footer costs a request there; the last file is the one that was perhaps not complete
    for file in done:
        if file.name in present:
            found = read_footer(dataset.filesystem, f"{folder}/{file.name}")
            if describe(found, folder) != file:
                raise UserError(
                    f"{found.path}: the file has changed since it was trained on; give new data a new name, after this one."
                )


def _refuse_late(folder: str, first: str, done: Sequence[UsedFile]) -> None:
    if done and first < done[-1].name:
        raise UserError(
            f"{folder}/{first}: this file is new, but its name comes before {done[-1].name}, which was trained on; rename it "
            "so that names are in the order of use."
        )


def _fingerprint(size: int, metadata: pq.FileMetaData) -> str:
    parts = [repr((size, metadata.num_rows, metadata.created_by))]
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            parts.append(
                repr((column.path_in_schema, column.data_page_offset, column.total_compressed_size, column.num_values))
            )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
