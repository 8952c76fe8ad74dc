"""Inspecting the checkpoints of a run, and removing old ones, in one process and without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlrm_mtl.checkpoint.checkpoints import POINTERS, STEP_NAME, Checkpoints, Opened
from dlrm_mtl.checkpoint.state import CHECKPOINTS
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.run.folder import NO_RUN
from dlrm_mtl.storage.filesystems import is_local, locate
from dlrm_mtl.storage.remote_folder import RemoteStore
from dlrm_mtl.storage.run_lock import lock_of
from dlrm_mtl.storage.run_store import LocalStore, RunStore


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint in a run's folder."""

    name: str
    step: int
    size: int
    """Size of all files in bytes."""
    files: int
    format: int | None
    """Number of the format; None if the checkpoint is incomplete or damaged."""
    pointers: tuple[str, ...]
    """Pointers (``latest``, ``best``) that name it."""
    problem: str = ""
    """Reason why it cannot be used, as far as its index shows; empty if it can."""


def open_checkpoints(run: str | Path) -> Checkpoints:
    """Open the checkpoints of the run in the folder ``run``, path or URI, in one process.

    Raises:
        UserError: there is no run.
    """
    filesystem, root = locate(run)
    store: RunStore = LocalStore(Path(root))
    if not is_local(filesystem):
        store = RemoteStore(str(run), filesystem, root, Path())  # no file is staged
    if store.read("config.yaml") is None:
        raise UserError(f"{run}: {NO_RUN}.")
    return Checkpoints(store)


def pointed_at(checkpoints: Checkpoints) -> dict[str, str]:
    """Text of each existing pointer file."""
    found = {}
    for pointer in POINTERS:
        content = checkpoints.store.read(f"{CHECKPOINTS}/{pointer}")
        if content is not None:
            found[pointer] = content.decode(errors="replace").strip()
    return found


def list_checkpoints(checkpoints: Checkpoints) -> list[CheckpointInfo]:
    """All checkpoints, oldest first, complete or not; states and indexes are checked, tensors are not."""
    complete = set(checkpoints.names())
    pointers = pointed_at(checkpoints)
    found = []
    for name in sorted(name for name in checkpoints.store.names(CHECKPOINTS) if STEP_NAME.fullmatch(name)):
        files = checkpoints.store.files(f"{CHECKPOINTS}/{name}")
        format, problem = None, "incomplete"
        if name in complete:
            try:
                format, problem = checkpoints.open(name).index.format, ""
            except UserError as error:
                problem = str(error)
        names = tuple(pointer for pointer in POINTERS if pointers.get(pointer) == name)
        found.append(CheckpointInfo(name, int(name[5:]), sum(files.values()), len(files), format, names, problem))
    return found


def verify_checkpoints(checkpoints: Checkpoints, name: str | None = None) -> dict[str, Opened | UserError]:
    """Every complete checkpoint, or the one called ``name``: opened after checking every byte, or the error."""
    found: dict[str, Opened | UserError] = {}
    for each in checkpoints.names() if name is None else [checkpoints.find(name)]:
        try:
            found[each] = checkpoints.verify(each)
        except UserError as error:
            found[each] = error
    return found


def superfluous(checkpoints: Checkpoints, keep: int) -> list[str]:
    """Checkpoints that pruning to ``keep`` removes: never the latest, the best, or an incomplete one.

    Raises:
        UserError: the latest checkpoint is damaged, so that older ones may be needed.
    """
    names = checkpoints.names()
    if not names:
        return []
    checkpoints.verify(checkpoints.find("latest"))
    kept = {*names[-keep:], checkpoints.find("latest"), *pointed_at(checkpoints).values()}
    return [name for name in names if name not in kept]


def prune(checkpoints: Checkpoints, names: list[str]) -> None:
    """Remove the checkpoints ``names``, beginning with the file that marks each as complete.

    Raises:
        UserError: a job is training into this folder.
    """
    with lock_of(checkpoints.store):
        for name in names:
            checkpoints.discard(name)
