"""The history of a run: when it began, went on and ended, and what was changed on the way; one line of JSON each."""

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
        folder: of the run.
        event: ``start``, ``resume`` or ``end``.
        step: of the run.
        details: more keys.
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
