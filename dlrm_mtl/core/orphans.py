"""Workers that end when the agent that started them is gone: an orphan would go on writing beside a restarted job."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PATIENCE_SECONDS = 60.0
"""Time an orphan has for its last checkpoint, before it is ended."""
_PR_SET_PDEATHSIG = 1


def end_with_agent() -> None:
    """Let this process get SIGTERM when its agent (torchrun) dies, and end it if that has not ended it after a while.

    Training answers SIGTERM with a checkpoint after the step. A process that waits for others that are gone would never come
    to that, hence the limit, see :data:`PATIENCE_SECONDS`. Does nothing without an agent, or outside Linux.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    agent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    threading.Thread(target=_watch, args=(agent,), name="end-with-agent", daemon=True).start()


def _watch(agent: int) -> None:
    while os.getppid() == agent:
        time.sleep(1.0)
    time.sleep(PATIENCE_SECONDS)
    os._exit(1)
