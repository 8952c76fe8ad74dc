"""Workers and their agent (torchrun's process): they end when it is gone, and it tells a restarted job from another one."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from dlrm_mtl.core.kernel import machine, process_start

PATIENCE_SECONDS = 60.0
"""Time that an orphan has for its last checkpoint."""
_PR_SET_PDEATHSIG = 1


def end_with_agent() -> None:
    """Send SIGTERM to this process when its agent (torchrun) dies, and end it if it still runs :data:`PATIENCE_SECONDS` later.

    Training answers SIGTERM with a checkpoint after the step. The time limit is for a process that waits for others that
    are gone: it never reaches the end of its step. Does nothing without an agent, or outside Linux.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    agent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    threading.Thread(target=_watch, args=(agent,), name="end-with-agent", daemon=True).start()


def agent_identity() -> str:
    """Identity of this process's agent, the same for all workers that it starts in turn; empty without an agent."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    agent = os.getppid()
    return f"{machine()}/{agent}/{process_start(agent)}"


def _watch(agent: int) -> None:
    while os.getppid() == agent:
        time.sleep(1.0)
    time.sleep(PATIENCE_SECONDS)
    os._exit(1)
