"""Memory passes of a dense Clippy step, in two forms with the results of ``clippy.clippy_update``; see also clippy_native.py.

Each form has two halves. ``measure_*`` reads weights, gradients and accumulators and writes only to scratch. ``apply_*``
changes weights and accumulators, after every gradient of the step is known to be finite.

- ``blocked``: one tensor at a time, in blocks that stay in the processor's cache between passes. It runs on the CPU where
  the native form cannot, and reads numbers in between, which is free there.
- ``foreach``: lists of tensors. Nothing is copied to the host and no branch depends on a number. So it never waits for a
  GPU, can be captured in a CUDA graph, and is used under ``torch.compile``. A step that must not happen runs with gradients
  of zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dlrm_mtl.optim.clippy import ClippyOptions, effective_eps

BLOCK = 262_144
"""Number of elements of a block, per thread: five buffers of 1 MB. A half and a quarter are no faster with one thread. They
cost more with several threads if processes compete for cores, because every pass ends with all threads waiting for each
other."""


class Extent(NamedTuple):
    """Effect of a step on one tensor, before the learning rate: 0-dim tensors of the arithmetic's dtype."""

    ratio: Tensor
    """Largest |r| / allowed; may be any value below 1 / lr if no coordinate is near its bound."""
    direction: Tensor
    """Largest |r|."""
    accumulator: Tensor
    """Largest new accumulator: infinite or NaN if a gradient or its square is."""


class Scratch:
    """Buffers that are kept between steps, so that no step waits for fresh pages."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def pair(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Two buffers with the shape, strides and dtype of ``like``, a tensor on the CPU."""
        size = BLOCK * torch.get_num_threads()
        if like.dim() != 1 or like.numel() > size:  # a tensor that cannot be flattened
            return torch.empty_like(like), torch.empty_like(like)
        buffers = self._buffers.get(like.dtype)
        if buffers is None or buffers[0].numel() != size:
            buffers = self._buffers[like.dtype] = (like.new_empty(size), like.new_empty(size))
        return buffers[0][: like.numel()], buffers[1][: like.numel()]


def measure_blocked(
    weight: Tensor, gradient: Tensor, accumulator: Tensor, lr: float, options: ClippyOptions, scratch: Scratch
) -> Extent:
    """Measure one tensor on the CPU.

    Args:
        weight: [*], not empty.
        gradient: [*] of a dtype that converts to the accumulator's.
        accumulator: [*] of the arithmetic's dtype.
        lr: learning rate; blocks whose bound excludes that they set the factor are skipped.
        options: the rule's options.
        scratch: buffers.
    """
    dtype = accumulator.dtype
    eps = effective_eps(options, dtype)
    lambda_abs = torch.tensor(options.lambda_abs, dtype=dtype)
    delayed = options.accumulator == "delayed"
    nothing_allowed = options.lambda_abs < torch.finfo(dtype).tiny
    ratios, directions, accumulators = [torch.zeros((), dtype=dtype)], [], []
    decisive = 1.0  # ratio times lr up to which the factor does not change
    for w, g, a in _blocks(weight, gradient, accumulator):
        root, other = scratch.pair(a)
        torch.addcmul(a, g, g, out=root)
        accumulators.append(root.amax())
        _root(a if delayed else root, root, eps, options.eps_inside)
        if options.accumulator_relative_threshold:
            torch.reciprocal(root, out=other)
        r = torch.div(g, root, out=root).abs_()
        directions.append(r.amax())
        # No coordinate's ratio exceeds max |r| / lambda_abs. The margin is for rounding: the result is the same bit for
        # bit.
        if not nothing_allowed and lr * float(directions[-1]) * (1 + 1e-6) <= decisive * options.lambda_abs:
            continue
        if options.accumulator_relative_threshold:
            other.mul_(options.accumulator_relative_threshold).add_(w.abs(), alpha=options.lambda_rel).add_(lambda_abs)
        else:
            torch.abs(w, out=other)
            torch.add(lambda_abs, other, alpha=options.lambda_rel, out=other)
        r.div_(other)
        if nothing_allowed:
            r.nan_to_num_(nan=0.0, posinf=torch.inf)  # 0 / 0: a coordinate without gradient
        ratios.append(r.amax())
        decisive = max(decisive, lr * float(ratios[-1]))
    return Extent(*(torch.stack(values).amax() for values in (ratios, directions, accumulators)))


def apply_blocked(
    weight: Tensor,
    gradient: Tensor,
    accumulator: Tensor,
    scale: Tensor,
    factor: Tensor,
    decay: float,
    options: ClippyOptions,
    scratch: Scratch,
) -> None:
    """Update one tensor and its accumulator on the CPU, in place.

    Args:
        weight: as for :func:`measure_blocked`.
        gradient: as for :func:`measure_blocked`.
        accumulator: as for :func:`measure_blocked`.
        scale: [] factor of r: -lr sigma.
        factor: [] sigma.
        decay: factor of the weight before the update.
        options: the rule's options.
        scratch: buffers.
    """
    eps = effective_eps(options, accumulator.dtype)
    delayed = options.accumulator == "delayed"
    for w, g, a in _blocks(weight, gradient, accumulator, writable=True):
        root, other = scratch.pair(a)
        if not delayed:
            a.addcmul_(g, g)
        _root(a, root, eps, options.eps_inside)
        torch.mul(g, scale, out=other)
        target = w if w.dtype == a.dtype else w.to(a.dtype)
        if decay != 1:
            target.mul_(decay)
        target.addcdiv_(other, root)
        if target is not w:
            w.copy_(target)
        if delayed:
            taken = torch.mul(g, factor, out=other) if options.clip_accumulator_update else g
            a.addcmul_(taken, taken)


def _largest(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if tensors[0].is_cuda and not torch.compiler.is_compiling():
        return torch._foreach_max(tensors)
    return tuple(values.amax() for values in tensors)


def measure_foreach(
    weights: list[Tensor],
    gradients: list[Tensor],
    accumulators: list[Tensor],
    options: ClippyOptions,
) -> list[Extent]:
    """Measure tensors of one device and dtype without a host synchronisation; none may be empty.

    Args:
        weights: [*] each.
        gradients: [*] each, of dtypes that convert to the accumulators'.
        accumulators: [*] each, of the arithmetic's dtype.
        options: the rule's options.
    """
    dtype = accumulators[0].dtype
    gradients, weights = _converted(gradients, dtype), _converted(weights, dtype)
    eps = effective_eps(options, dtype)
    roots = torch._foreach_addcmul(accumulators, gradients, gradients)
    largest = _largest(roots)
    if options.accumulator == "delayed":
        roots = torch._foreach_add(accumulators, eps if options.eps_inside else 0.0)
    elif options.eps_inside:
        torch._foreach_add_(roots, eps)
    torch._foreach_sqrt_(roots)
    if not options.eps_inside:
        torch._foreach_add_(roots, eps)
    r = torch._foreach_div(gradients, roots)
    torch._foreach_abs_(r)
    directions = _largest(r)
    allowed = torch._foreach_abs(weights)
    torch._foreach_mul_(allowed, options.lambda_rel)
    torch._foreach_add_(allowed, options.lambda_abs)
    if options.accumulator_relative_threshold:
        torch._foreach_reciprocal_(roots)
        torch._foreach_add_(allowed, roots, alpha=options.accumulator_relative_threshold)
    torch._foreach_div_(r, allowed)
    if options.lambda_abs < torch.finfo(dtype).tiny:
        r = tuple(values.nan_to_num(nan=0.0, posinf=torch.inf) for values in r)
    return [Extent(*values) for values in zip(_largest(r), directions, largest, strict=True)]


def apply_foreach(
    weights: list[Tensor],
    gradients: list[Tensor],
    accumulators: list[Tensor],
    scales: list[Tensor],
    factors: list[Tensor],
    decay: float | Tensor,
    apply: Tensor,
    maximize: bool,
    options: ClippyOptions,
) -> None:
    """Update tensors of one device and dtype in place, or nothing; without a host synchronisation.

    Args:
        weights: [*] each, not empty.
        gradients: as for :func:`measure_foreach`.
        accumulators: as for :func:`measure_foreach`.
        scales: [] each: -lr sigma, or lr sigma to ``maximize``.
        factors: [] each: sigma.
        decay: factor of the weights before the update.
        apply: [] bool on the tensors' device; if False, every weight and accumulator keeps its bits.
        maximize: sign of ``scales``.
        options: the rule's options.
    """
    dtype = accumulators[0].dtype
    eps = effective_eps(options, dtype)
    # Adding -0.0 to a weight keeps its bits, even those of -0.0. So the gradient of a skipped step has the sign that makes
    # gradient * scale equal to -0.0.
    nothing = -0.0 if maximize else 0.0
    gradients = [torch.where(apply, gradient, nothing) for gradient in _converted(gradients, dtype)]
    targets = _converted(weights, dtype)
    if isinstance(decay, Tensor) or decay != 1:
        torch._foreach_mul_(targets, [torch.where(apply, decay, 1.0).to(dtype)] * len(targets))
    delayed = options.accumulator == "delayed"
    if not delayed:
        torch._foreach_addcmul_(accumulators, gradients, gradients)
    roots = torch._foreach_add(accumulators, eps) if options.eps_inside else torch._foreach_sqrt(accumulators)
    if options.eps_inside:
        torch._foreach_sqrt_(roots)
    else:
        torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(targets, torch._foreach_mul(gradients, tuple(scales)), roots)
    if targets is not weights:
        torch._foreach_copy_(weights, targets)
    if delayed:
        if options.clip_accumulator_update:
            torch._foreach_mul_(gradients, tuple(factors))
        torch._foreach_addcmul_(accumulators, gradients, gradients)


def _blocks(
    weight: Tensor, gradient: Tensor, accumulator: Tensor, writable: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Matching parts, flat if the memory layout allows it; weights (to read) and gradients in the accumulator's dtype."""
    dtype = accumulator.dtype
    if weight.is_contiguous() and accumulator.is_contiguous():
        size = BLOCK * torch.get_num_threads()
        parts = zip(
            weight.view(-1).split(size), gradient.reshape(-1).split(size), accumulator.view(-1).split(size), strict=True
        )
    else:
        parts = zip((weight,), (gradient,), (accumulator,), strict=True)
    for w, g, a in parts:
        yield w if writable else w.to(dtype), g.to(dtype), a


def _root(accumulator: Tensor, out: Tensor, eps: float, inside: bool) -> None:
    if inside:
        torch.add(accumulator, eps, out=out).sqrt_()
    else:
        torch.sqrt(accumulator, out=out).add_(eps)


def _converted(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    if all(values.dtype == dtype for values in tensors):
        return tensors
    return [values.to(dtype) for values in tensors]
