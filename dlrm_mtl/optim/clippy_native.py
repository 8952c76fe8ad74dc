"""A dense Clippy step on the CPU in C++: one pass over memory to measure and one to apply, over all parameters of a group.

Results are those of ``clippy.clippy_update`` bit for bit, whatever the number of threads. float32 only.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.embeddings.kernels.dispatch import kernels_for
from dlrm_mtl.optim.clippy import ClippyOptions, effective_eps


def available() -> bool:
    """True if there is a native library, and the environment does not ask for the kernels in plain PyTorch."""
    return kernels_for("cpu") is cpu


def fits(weight: Tensor, gradient: Tensor, accumulator: Tensor) -> bool:
    """True for a parameter on the CPU that the native library can update."""
    if not weight.dtype == gradient.dtype == accumulator.dtype == torch.float32:
        return False
    if gradient.layout != torch.strided:  # touched rows are copied
        return True
    return weight.is_contiguous() and gradient.is_contiguous() and accumulator.is_contiguous()


def measure(
    weights: list[Tensor], gradients: list[Tensor], accumulators: list[Tensor], lr: float, options: ClippyOptions
) -> Tensor:
    """Measure P contiguous parameters, none of them empty.

    Returns:
        [3, P]: the numbers of :class:`~dlrm_mtl.optim.clippy_passes.Extent`. The accumulator is 0 if it is finite.
    """
    extents = torch.empty(len(weights), 3)
    _call("dlrm_mtl_measure_dense", weights, gradients, accumulators, _rule(lr, 1.0, options), extents.data_ptr())
    return extents.T


def apply(
    weights: list[Tensor],
    gradients: list[Tensor],
    accumulators: list[Tensor],
    scales: Tensor,
    factors: Tensor,
    decay: float,
    options: ClippyOptions,
) -> None:
    """Update P contiguous parameters and their accumulators in place.

    Args:
        weights: [*] each, not empty.
        gradients: [*] each.
        accumulators: [*] each.
        scales: [P] factors of r: -lr sigma.
        factors: [P] sigma.
        decay: factor of the weights before the update.
        options: the rule's options.
    """
    scales, factors = scales.contiguous(), factors.contiguous()
    numbers = scales.data_ptr(), factors.data_ptr()
    _call("dlrm_mtl_apply_dense", weights, gradients, accumulators, _rule(0.0, decay, options), *numbers)


class _DenseRule(ctypes.Structure):
    """See DenseRule in the kernels' csrc/dense_clippy.h."""

    _fields_ = [
        ("lr", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("eps_inside", "delayed", "clip_accumulator")),
        *((name, ctypes.c_float) for name in ("lambda_rel", "lambda_abs", "threshold", "eps", "decay")),
    ]


def _rule(lr: float, decay: float, options: ClippyOptions) -> _DenseRule:
    return _DenseRule(
        lr=lr,
        eps_inside=options.eps_inside,
        delayed=options.accumulator == "delayed",
        clip_accumulator=options.clip_accumulator_update,
        lambda_rel=options.lambda_rel,
        lambda_abs=options.lambda_abs,
        threshold=options.accumulator_relative_threshold,
        eps=effective_eps(options, torch.float32),
        decay=decay,
    )


def _call(
    name: str,
    weights: list[Tensor],
    gradients: list[Tensor],
    accumulators: list[Tensor],
    rule: _DenseRule,
    *numbers: int,
) -> None:
    count = len(weights)
    addresses = (
        (ctypes.c_void_p * count)(*[values.data_ptr() for values in tensors])
        for tensors in (weights, gradients, accumulators)
    )
    sizes = (ctypes.c_int64 * count)(*[weight.numel() for weight in weights])
    pointers = [ctypes.c_void_p(number) for number in numbers]
    threads = ctypes.c_int64(torch.get_num_threads())
    if not cpu.function(name)(ctypes.byref(rule), *addresses, sizes, ctypes.c_int64(count), *pointers, threads):
        raise MemoryError("the dense update found no memory")
