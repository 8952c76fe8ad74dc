"""Plain errors for damaged Parquet files, even where Arrow would end the process.

pyarrow lets a C++ exception escape, which Python cannot catch, when it reads a column of a footer that contradicts itself
(seen with Arrow 26: "Definition level histogram size mismatch"). While a footer is examined, the C++ runtime's terminate
handler therefore prints a sentence that names the file, and exits with code 2.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.filesystems import first_line

CONTRADICTION = ValueError("its footer contradicts itself")
_LIBRARY = "libc++.1.dylib" if sys.platform == "darwin" else "libstdc++.so.6"


def unreadable(place: str, error: Exception) -> UserError:
    """Error for a file or row group that is not readable as Parquet."""
    return UserError(
        f"{place}: cannot be read as Parquet ({first_line(error)}); it may be truncated, damaged or not complete yet: "
        "write it again."
    )


@contextmanager
def examining(place: str) -> Iterator[None]:
    """Context in which this thread examines the footer of the file ``place``: a crash prints an error instead of aborting."""
    guard = _guard()
    with guard.lock:
        guard.places[threading.get_ident()] = place
        if len(guard.places) == 1:
            guard.before = guard.set(guard.handler)
    try:
        yield
    finally:
        with guard.lock:
            del guard.places[threading.get_ident()]
            if not guard.places:
                guard.set(guard.before)


class _Guard:
    """The terminate handler of the C++ runtime, replaced while any thread examines a footer."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.places: dict[int, str] = {}
        self.before: Any = None
        handler_type = ctypes.CFUNCTYPE(None)
        self.handler = handler_type(self._terminate)
        try:
            self.set: Any = ctypes.CDLL(_LIBRARY)._ZSt13set_terminatePFvvE
            self.set.argtypes, self.set.restype = [handler_type], handler_type
        except (OSError, AttributeError):  # another C++ runtime: the process aborts
            self.set = lambda handler: handler

    def _terminate(self) -> None:
        place = self.places.get(threading.get_ident())
        if place is None:
            self.before()
        os.write(2, f"error: {unreadable(str(place), CONTRADICTION)}\n".encode())
        os._exit(2)


_guard = cache(_Guard)
