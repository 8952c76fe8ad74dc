"""What this machine, or the container on it, has."""

from __future__ import annotations

import os
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where the second and the first version of Linux's control groups keep a container's limit."""


def memory_bytes() -> int:
    """Memory of the machine, or of the container if that has less."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _LIMITS:
        try:
            limit = min(limit, int(file.read_text()))
        except (OSError, ValueError):  # no container, or none with a limit
            continue
    return limit
