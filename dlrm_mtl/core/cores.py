"""Processor cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Time on all cores that a container gets in a period, and the period, in version 2 of Linux control groups."""


def available_cores() -> int:
    """Number of cores, or the container's share of them if that is less; at least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or no limit
        pass
    return max(cores, 1)
