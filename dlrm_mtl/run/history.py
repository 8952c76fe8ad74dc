"""History of a run: starts, resumptions, ends and changes, one line of JSON each."""

from __future__ import annotations

import datetime
import json
import os
import socket
from typing import Any

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_lines
from dlrm_mtl.core.orphans import agent_identity
from dlrm_mtl.core.processes import gather_objects
from dlrm_mtl.run.folder import RunFolder


class Starter:
    """Processes of this job and their agents; to be made on every process."""

    def __init__(self) -> None:
        found = gather_objects(((socket.gethostname(), os.getpid()), agent_identity()))
        self._processes = {process for process, _ in found}
        self.agents = sorted({agent for _, agent in found} - {""})
        """Identities of the agents; an agent keeps it when it starts its processes again."""

    def began(self, folder: RunFolder) -> bool:
        """Return True if an agent of this job started the run in ``folder`` before, with other processes.

        A host that joins brings an agent of its own, and the others are still there. For one process.
        """
        for entry in parse_lines(_text(folder)):
            try:
                own = (entry["host"], entry["pid"]) in self._processes
                if not own and not set(self.agents).isdisjoint(entry["agents"]):
                    return True
            except (KeyError, TypeError):  # a line of an earlier version
                continue
        return False


def has_ended(folder: RunFolder) -> bool:
    """True if the last event of the run is its end; runs of earlier versions have results only. For one process."""
    lines = _text(folder).splitlines(keepends=True)
    if not lines:
        return folder.store.read(folder.results.name) is not None
    return any(entry.get("event") == "end" for entry in parse_lines(lines[-1]))


def _text(folder: RunFolder) -> str:
    return (folder.store.read(folder.history.name) or b"").decode(errors="replace")


def record(folder: RunFolder, event: str, step: int, **details: Any) -> None:
    """Append a line to history.jsonl; for the first process.

    Args:
        folder: folder of the run.
        event: ``start``, ``resume`` or ``end``.
        step: step of the run.
        details: further keys.
    """
    entry = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "event": event,
        "step": step,
        **details,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": dlrm_mtl.__version__,
    }
    try:
        with open(folder.history, "ab+") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                file.write(b"\n")  # the job before was killed while it wrote
            file.write(json.dumps(entry).encode() + b"\n")
    except OSError as error:
        raise UserError(
            f"{folder.history}: cannot be written to ({error.strerror}); correct the permissions."
        ) from None
