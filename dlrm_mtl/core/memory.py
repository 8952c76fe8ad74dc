"""Memory of this machine, or of the container on it."""

from __future__ import annotations

import os
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Memory limit of a container, in version 2 and version 1 of Linux control groups."""


def memory_bytes() -> int:
    """Memory of the machine in bytes, or the container's limit if that is lower."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _LIMITS:
        try:
            limit = min(limit, int(file.read_text()))
        except (OSError, ValueError):  # no container, or no limit
            continue
    return limit
