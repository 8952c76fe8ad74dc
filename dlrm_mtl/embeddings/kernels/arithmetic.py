"""Square roots and addcmul as this build of PyTorch computes them on this processor, for kernels with its bits.

PyTorch's square root of float32 may be that of Intel's MKL, which is not correctly rounded on every processor; its
``addcmul`` may round once or twice. Both are found out by trying.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

MODE = 0x2 | 0x140000 | 0x100
"""MKL's highest accuracy, subnormal numbers kept, errors not reported (VML_HA, VML_FTZDAZ_OFF, VML_ERRMODE_IGNORE)."""


def use_in(library: ctypes.CDLL) -> None:
    """Tell the native library which arithmetic is PyTorch's."""
    set_arithmetic = library.dlrm_mtl_arithmetic
    set_arithmetic.argtypes, set_arithmetic.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], None
    set_arithmetic(_root_function(), MODE, _addcmul_rounds_once())


def _samples() -> Tensor:
    return torch.arange(1, 1025, dtype=torch.float32, device="cpu") * 0.7371


def _root_function() -> int | None:
    """Address of MKL's square root if that is PyTorch's; None for the processor's own, which is correctly rounded."""
    samples = _samples()
    wanted = samples.sqrt()
    if torch.equal(wanted, samples.double().sqrt().float()):
        return None
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            function = ctypes.CDLL(str(path)).vmsSqrt
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = None
        found = torch.empty_like(samples)
        function(len(samples), samples.data_ptr(), found.data_ptr(), MODE)
        if torch.equal(found, wanted):
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


def _addcmul_rounds_once() -> bool:
    samples = _samples()
    plain = samples * samples + samples
    return not torch.equal(torch.addcmul(samples, samples, samples), plain)
