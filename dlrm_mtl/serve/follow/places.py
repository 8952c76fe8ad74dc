"""Places of published versions, and folders on this machine for the bundles made of them."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.filesystems import is_local, locate
from dlrm_mtl.storage.remote_folder import RemoteStore
from dlrm_mtl.storage.run_store import LocalStore, RunStore, StorageError
from dlrm_mtl.versions.chain import Chain
from dlrm_mtl.versions.format import StoredVersion, version_name


def versions_store(place: str) -> RunStore:
    """Files of published versions, path or URI, to be read."""
    filesystem, root = locate(place)
    if is_local(filesystem):
        return LocalStore(Path(root))
    return RemoteStore(place, filesystem, root, Path(os.devnull))


def versions_until(store: RunStore, number: int | None) -> list[StoredVersion]:
    """A base and its deltas up to a version, or to the newest that can be used.

    Args:
        store: files of the versions.
        number: number of the last version; None for the newest.

    Raises:
        UserError: there are no versions, not this one, or it cannot be used.
    """
    chain = Chain(store)
    if chain.identity() is None:
        raise UserError(f"{store.place}: there are no published versions here; name the folder of training.publish.to.")
    found = chain.newest(until=number)
    wanted = number is None or (found.versions and found.versions[-1].version.number == number)
    if not wanted or not found.versions:
        if found.problem is not None:
            raise found.problem
        there = ", ".join(str(each) for each in chain.numbers()) or "none yet"
        missing = "no version" if number is None else f"no {version_name(number)}"
        raise UserError(f"{store.place}: there is {missing} here; there are {there}.")
    return found.versions


def default_cache(place: str) -> Path:
    """Folder in the user's cache for the versions at ``place``."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "dlrm-mtl" / hashlib.sha256(place.encode()).hexdigest()[:16]


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Let one process at a time write into ``cache``, which is made if needed.

    Raises:
        UserError: it cannot be written to.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = os.open(cache / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(
            f"{cache}: cannot be written to ({error.strerror}); name another folder with --cache."
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
