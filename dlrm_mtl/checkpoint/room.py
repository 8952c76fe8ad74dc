"""Room for a folder of tensors, checked before it is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import size_text
from dlrm_mtl.storage.run_store import FreeRoom

OTHER_FILES = 4
"""Index, state, pointers."""


@dataclass(frozen=True)
class Need:
    """What a process wants to write."""

    host: str
    """Name of its machine, or of all that share the folder."""
    bytes: int
    files: int
    room: FreeRoom | None
    """Free room, from one process of each host."""


def check_room(needs: Iterable[Need], place: str, remedy: str) -> None:
    """Check that everything fits.

    Args:
        needs: needs of all processes.
        place: the folder that is written, for errors.
        remedy: how to need less, for errors.

    Raises:
        UserError: a file system has too little room; the sentence names what is needed and what is free.
    """
    found = list(needs)
    for room, host in [(need.room, need.host) for need in found]:
        if room is None:
            continue
        size = sum(need.bytes for need in found if need.host == host)
        files = sum(need.files for need in found if need.host == host) + OTHER_FILES
        where = f" on {host}" if host else ""
        if size > room.bytes:
            raise UserError(
                f"{place}: cannot be written, as it needs {size_text(size, 'bytes')} and {size_text(room.bytes, 'bytes')} are "
                f"free{where}; make room, or {remedy}."
            )
        if room.files is not None and files > room.files:
            raise UserError(
                f"{place}: cannot be written, as it needs {files:,} files and the file system{where} has room for "
                f"{room.files:,}; remove files there."
            )
