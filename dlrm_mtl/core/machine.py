"""The machine behind a figure."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Name of the processor and its number of cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
