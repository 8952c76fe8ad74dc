"""CRC-32 of blocks of bytes, with the values of zlib.

The kernel in C++ multiplies without carries, where the processor does that; elsewhere zlib serves. The kernel releases the GIL
for all blocks together.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from functools import cache

import numpy as np

from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.embeddings.kernels.dispatch import VARIABLE

INTERFACE = 1
"""Value of ``dlrm_mtl_block_sums_interface()`` in a library that fits this file."""


def crc32_of_blocks(content: memoryview, block: int) -> bytes:
    """Checksums of every ``block`` bytes of ``content``: uint32, little-endian. The last block may be shorter."""
    function = None if os.environ.get(VARIABLE, "") == "reference" else _function()
    if function is not None:
        sums = np.empty(-(-len(content) // block), np.uint32)
        if function(np.frombuffer(content, np.uint8).ctypes.data, len(content), block, sums.ctypes.data):
            return sums.tobytes()
    return b"".join(
        zlib.crc32(content[start : start + block]).to_bytes(4, "little") for start in range(0, len(content), block)
    )


@cache
def _function() -> ctypes._NamedFuncPointer | None:
    """The function of the library; None if there is none that fits."""
    return cpu.part_function(
        "block_sums", INTERFACE, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    )
