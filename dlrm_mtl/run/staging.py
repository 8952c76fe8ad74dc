"""Working folder of a run: its own folder, or a staging folder on each host for a run on an object store."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import local_rank, on_every_process
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.storage.filesystems import is_local, locate
from dlrm_mtl.storage.remote_folder import RemoteStore
from dlrm_mtl.storage.run_store import LocalStore, RunStore


@contextmanager
def run_folder(place: str | Path) -> Iterator[RunFolder]:
    """Open the run's folder at ``place``, path or URI. Every process must enter this context, within a process group.

    For a URI of remote storage every host works in a staging folder, which is removed at the end.

    Raises:
        UserError: nothing can be stored at ``place``, or there is no space for a staging folder.
    """
    with store_at(place) as store:
        try:
            yield RunFolder(store)
        except Exception as error:
            if dist.get_rank() == 0 and isinstance(store, RemoteStore):
                store.publish_after_error()
            if isinstance(error, UserError):  # the user knows the run by its URI
                raise type(error)(str(error).replace(str(store.local), store.place), local=error.local) from None
            raise


@contextmanager
def store_at(place: str | Path) -> Iterator[RunStore]:
    """Open a folder at ``place``, path or URI, that all processes write into; as :func:`run_folder` does."""
    filesystem, root = locate(place)
    if is_local(filesystem):
        yield LocalStore(Path(root))
        return
    with _staging_folder() as local:
        yield RemoteStore(str(place), filesystem, root, local)


@contextmanager
def _staging_folder() -> Iterator[Path]:
    """A new folder for the processes of this host, made and removed by the first of them.

    It is in the folder for temporary files (``TMPDIR``) and locked while in use, which also keeps systemd from removing it.
    Folders left by killed processes are unlocked, and removed.
    """
    host = dist.get_rank() - local_rank()
    made = on_every_process(lambda: (host, _new_folder() if local_rank() == 0 else None))
    folder, lock = next(mine for at, mine in made if at == host and mine is not None)
    try:
        yield folder
    finally:
        if local_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _new_folder() -> tuple[Path, int]:
    home = Path(tempfile.gettempdir()) / f"dlrm-mtl-{os.getuid()}"
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it belongs to another user")
        guard = os.open(home, os.O_RDONLY)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            for left in home.iterdir():
                _remove_if_unlocked(left)
            folder = Path(tempfile.mkdtemp(dir=home))
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        finally:
            os.close(guard)
    except OSError as error:
        raise UserError(
            f"{home}: cannot hold a copy of the run while it works ({error.strerror}); set TMPDIR to a local folder with room "
            "for a checkpoint."
        ) from None
    return folder, lock


def _remove_if_unlocked(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
