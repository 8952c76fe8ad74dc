"""Memory of this machine, or of the container on it; sizes as text; how freed memory is kept."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Memory limit of a container, in version 2 and version 1 of Linux control groups."""


_USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))
"""Memory in use in a container, in the same order."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of ``mallopt``'s parameters in <malloc.h> of the GNU C library."""


def keep_freed_memory() -> bool:
    """Let large tensors of a step take the memory that those of the step before have freed.

    The GNU C library gives blocks above 32 MiB back to the system when they are freed. The next step gets them as new pages,
    which the system fills with zeros, one fault each. From now on, up to 2 GiB of freed memory stay with this process, and
    blocks below 1 GiB are taken from it.

    Returns:
        False if nothing was changed: another C library, or the environment sets these limits (``MALLOC_TRIM_THRESHOLD_``,
        ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``). Allocators that are preloaded are not affected.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if sys.platform != "linux" or chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30) and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))


def available_bytes() -> int:
    """Memory in bytes that is free on the machine, or in the container if that is less, where page cache counts as used."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):  # no Linux
        pass
    for limit, used in zip(_LIMITS, _USED, strict=True):
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):
            continue
    return free


def memory_bytes() -> int:
    """Memory of the machine in bytes, or the container's limit if that is lower."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _LIMITS:
        try:
            limit = min(limit, int(file.read_text()))
        except (OSError, ValueError):  # no container, or no limit
            continue
    return limit


def size_text(size: int, unit: str = "B") -> str:
    """A number of bytes in a unit that fits; ``unit`` is what bytes are called."""
    if size < 1024:
        return f"{size} {unit}"
    power = min((size.bit_length() - 1) // 10, 4)
    return f"{size / 1024**power:,.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def parse_size(text: str) -> int | None:
    """Number of bytes in a text such as ``64GB`` or ``500 MiB``; None if it is not a size."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])(i?)B\s*", text, re.IGNORECASE)
    if not match:
        return None
    base = 1024 if match.group(3) else 1000
    return int(float(match.group(1)) * base ** ("KMGT".index(match.group(2).upper()) + 1))
