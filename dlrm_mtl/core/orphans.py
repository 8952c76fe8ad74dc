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
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    end_with_parent(os.getppid(), PATIENCE_SECONDS)


def end_with_parent(parent: int, patience: float) -> None:
    """Send SIGTERM to this process when its parent dies, and end it if it still runs ``patience`` seconds later.

    The main thread of the parent must have started it. Does nothing outside Linux.

    Args:
        parent: process number of the parent, which may be gone already.
        patience: seconds.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=_watch, args=(parent, patience), name="end-with-parent", daemon=True).start()


def agent_identity() -> str:
    """Identity of this process's agent, the same for all workers that it starts in turn; empty without an agent."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    agent = os.getppid()
    return f"{machine()}/{agent}/{process_start(agent)}"


def _watch(parent: int, patience: float) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(patience)
    os._exit(1)
