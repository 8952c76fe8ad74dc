"""The machine's yardstick for tables: passes over random rows that only read, or read and write, compiled on the spot."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path


def compiled_pass() -> Callable[..., int] | None:
    """The function of row_gather.cpp: table, bytes of a row, ids, their number, distance of prefetches, threads, writes, 0.

    Returns:
        None if there is no g++.
    """
    source = Path(__file__).with_name("row_gather.cpp")
    with tempfile.TemporaryDirectory() as folder:
        # Two commands: linking with -fopenmp would add a second pool of threads to PyTorch's.
        library, unlinked = f"{folder}/row_gather.so", f"{folder}/row_gather.o"
        try:
            subprocess.run(
                ["g++", "-std=c++17", "-O3", "-fopenmp", "-fPIC", "-c", str(source), "-o", unlinked], check=True
            )
            subprocess.run(["g++", "-shared", unlinked, "-o", library], check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        function = ctypes.CDLL(library).pass_over_rows
    number = ctypes.c_int64
    address = ctypes.c_void_p
    function.argtypes = [address, number, address, number, number, number, number, ctypes.c_uint64]
    function.restype = ctypes.c_uint64
    return function
