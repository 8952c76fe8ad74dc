"""Launching Triton kernels at little cost to the host.

At every launch Triton derives a kernel's compiled form from the arguments, which takes longer than the launch itself. The
launches determine the time of a training step on a fast device. So here the form is derived only once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter, methodcaller
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

_ALIGNMENT = 16
_STAY = nullcontext()
_dtype = attrgetter("dtype")
_address = methodcaller("data_ptr")


class Kernel:
    """A kernel whose arguments are tensors, then numbers without specialization, then constants."""

    def __init__(self, function: Any, **options: Any) -> None:
        """Wrap the result of ``triton.jit``, with the compiler's options."""
        self.function = function
        self.options = options
        self._compiles = isinstance(function, JITFunction)
        self._forms: dict[Any, tuple[Any, Any, Any, tuple[Any, ...]]] = {}

    def __call__(
        self, grid: tuple[int, ...], tensors: tuple[Tensor, ...], numbers: tuple[int | float, ...], **constants: Any
    ) -> None:
        """Launch; the tensors must be on the current device, and integers below 2^31."""
        addresses = tuple(map(_address, tensors))
        together = 0
        for address in addresses:
            together |= address
        if not self._compiles or together % _ALIGNMENT:
            # The interpreter compiles nothing. PyTorch's allocations are aligned, but views may not be.
            self.function[grid](*tensors, *numbers, **constants, **self.options)
            return
        device = torch._C._cuda_getDevice()
        key = (device, *map(_dtype, tensors), *constants.items())
        form = self._forms.get(key)
        if form is None:
            self._forms[key] = self._compile(grid, tensors, numbers, constants)
            return
        run, function, metadata, tail = form
        across, down = grid if len(grid) == 2 else (grid[0], 1)
        stream = torch._C._cuda_getCurrentRawStream(device)
        run(across, down, 1, stream, function, metadata, None, None, None, *addresses, *numbers, *tail)

    def _compile(
        self,
        grid: tuple[int, ...],
        tensors: tuple[Tensor, ...],
        numbers: tuple[int | float, ...],
        constants: dict[str, Any],
    ) -> tuple[Any, Any, Any, tuple[Any, ...]]:
        """Let Triton compile and launch; return the arguments for later launches."""
        for parameter, number in zip(self.function.params[len(tensors) :], numbers, strict=False):
            if isinstance(number, int) and not parameter.do_not_specialize:
                # The code compiled for one number must suit all others.
                raise TypeError(f"{self.function.__name__} is specialized on {parameter.name}")
        compiled = self.function[grid](*tensors, *numbers, **constants, **self.options)
        names = self.function.arg_names[len(tensors) + len(numbers) :]
        return compiled.run, compiled.function, compiled.packed_metadata, tuple(constants[name] for name in names)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Context that launches on this device, as PyTorch's functions do on their arguments' device."""
    if device.type != "cuda" or device.index == torch._C._cuda_getDevice():
        return _STAY
    return torch.cuda.device(device)
