"""Growing data: the next files of a folder in which every file is trained on exactly once.

New Parquet files arrive in a split's folder. Their names, such as ``2024-03-02/part-0.parquet``, give the order of their
use. A *round* trains on all present files that have not been used. :class:`Consumed` records the used files and belongs in
a run's checkpoint. Files that arrive during a round belong to the next one.

The loader treats round ``n`` as a split of its own with one epoch. The order of its rows is a pure function of (seed, n,
step), so an interrupted round is resumed by listing the same files and seeking.
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
    """A file that a round uses, and its fingerprint."""

    name: str
    """Path relative to the split's folder."""
    rows: int
    fingerprint: str
    """Hash of its size and of the offsets and sizes of all columns, from its footer."""


@dataclass
class Consumed:
    """Files that a run has trained on. A checkpoint's ``progress.json`` holds them as plain values, see :meth:`state`."""

    done: list[UsedFile] = field(default_factory=list)
    """Files of finished rounds, in the order of their use."""
    rounds: int = 0
    """Number of finished rounds; also the number of the current round, which takes the place of the epoch."""
    current: list[UsedFile] = field(default_factory=list)
    """Files of the current round."""

    def state(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Consumed:
        """Inverse of :meth:`state`; an empty ``state`` means that nothing was consumed."""
        done, current = ([UsedFile(**file) for file in state.get(key, [])] for key in ("done", "current"))
        return cls(done, state.get("rounds", 0), current)

    def finish_round(self) -> None:
        """Move the files of the current round to the finished ones."""
        self.done += self.current
        self.current = []
        self.rounds += 1


@dataclass(frozen=True)
class NextRound:
    """Files to train on next."""

    split: Split | None
    """Files of this round, for a :class:`~dlrm_mtl.data.reader.BatchLoader`; None if there are no new files."""
    remarks: list[str]
    """Sentences about files left for the next round."""


def next_round(dataset: Dataset, split: str, consumed: Consumed) -> NextRound:
    """The current round with its recorded files, or a new round of all files that are not consumed.

    A new round is stored in ``consumed.current``. The folder may grow between two listings, so one process calls this
    first, and the others call it with the resulting state: they get the same files, or an error.

    Raises:
        UserError: there is no such split; a file of the current round is missing or has changed; a consumed file has
            changed; or a
            new file's name comes before that of a consumed one.
    """
    folder = dataset.folder(split)
    present = [path[len(folder) + 1 :] for path in list_files(dataset.filesystem, folder)]
    if consumed.current:
        found = _footers(dataset, [f"{folder}/{file.name}" for file in consumed.current])
        same = [_same(folder, file, now) for file, now in zip(consumed.current, found, strict=True)]
        return NextRound(Split(split, dataset.spec, tuple(same)), [])
    _refuse_changes(dataset, folder, consumed.done, set(present))
    known = {file.name for file in consumed.done}
    new = [name for name in present if name not in known]
    files: list[DataFile] = []
    remarks: list[str] = []
    for file in _footers(dataset, [f"{folder}/{name}" for name in new]):
        if isinstance(file, UserError):
            # Names give the order: files after one that is still being written must wait with it.
            waiting = len(new) - len(files)
            remarks.append(f"{file} It and what comes after it, {waiting} file(s), are left for the next round.")
            break
        files.append(file)
    if sum(file.rows for file in files) == 0:
        return NextRound(None, remarks)
    _refuse_late(folder, files[0].path[len(folder) + 1 :], consumed.done)
    consumed.current = [describe(file, folder) for file in files]
    return NextRound(Split(split, dataset.spec, tuple(files)), remarks)


def describe(file: DataFile, folder: str) -> UsedFile:
    """Record of ``file`` for later comparison."""
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
    """Refuse changed files among the consumed ones, whose new rows would never be seen. Removed files are allowed."""
    if not is_local(dataset.filesystem):
        done = done[-1:]  # a footer costs a request there; only the last file may have been incomplete
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
