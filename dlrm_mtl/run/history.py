"""History of a run: starts, resumptions, ends and changes, one line of JSON each."""

from __future__ import annotations

import datetime
import json
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
        with open(folder.history, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise UserError(
            f"{folder.history}: cannot be written to ({error.strerror}); correct the permissions."
        ) from None
