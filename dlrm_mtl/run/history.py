"""History of a run: starts, resumptions, ends and changes, one line of JSON each."""

from __future__ import annotations

import datetime
import json
import os
import socket
from typing import Any

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.run.folder import RunFolder


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
