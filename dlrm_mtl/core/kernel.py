"""Identities from the kernel: of this machine, and of a process, whose number may be given to another one later."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def machine() -> str:
    """Identity of the running kernel; the host's name where it has none."""
    return _first_line("/proc/sys/kernel/random/boot_id") or socket.gethostname()


def process_start(pid: int) -> str:
    """Start time of a process, in ticks since boot; empty if it is gone or a zombie."""
    stat = _first_line(f"/proc/{pid}/stat")
    fields = stat.rpartition(")")[2].split()
    if fields:
        return "" if fields[0] in "ZX" else fields[19]
    if os.path.isdir("/proc/self"):
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "unknown"


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
