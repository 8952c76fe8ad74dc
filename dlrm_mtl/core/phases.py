"""Phases of a training step: spans in a profiler's trace, and the time of each while a clock runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.profiler import record_function

GRADIENT_EXCHANGE = "gradient exchange"
"""Rest of a backward pass after the gradient of the features is known: it is sent to the processes that hold the rows, and
DDP finishes the sums of dense gradients."""


class PhaseClock:
    """Clock of the phases that :func:`phase` names, in the thread of the training loop.

    A phase inside another one is not counted in the outer one, so that the times add up. On a GPU the clock waits for the
    device at both ends of a phase: the times are the device's, and training is slower.

    Args:
        device: device of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._seconds: dict[str, float] = {}
        self._waits = device.type == "cuda"
        self._open: list[str] = []
        self._since = time.perf_counter()

    @property
    def current(self) -> tuple[str, ...]:
        """The open phases, the outermost one first."""
        return tuple(self._open)

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call; what belongs to no phase is in none of them."""
        self._charge()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def enter(self, name: str) -> None:
        """Begin a phase, inside the current one if there is any."""
        self._charge()
        self._open.append(name)

    def leave(self) -> None:
        """End the current phase."""
        self._charge()
        self._open.pop()

    def turn(self, from_: str, to: str) -> None:
        """Count the rest of the current phase, if it is ``from_``, as ``to``."""
        if self._open and self._open[-1] == from_:
            self._charge()
            self._open[-1] = to

    def __enter__(self) -> PhaseClock:
        global _clock
        _clock = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _clock
        _clock = None

    def _charge(self) -> None:
        if self._waits:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


_clock: PhaseClock | None = None
_NOTHING = nullcontext()


def phase(name: str) -> AbstractContextManager[object]:
    """Context of a phase: a span ``## name ##`` in traces, and timed while a clock runs."""
    # PyTorch sets this for its profiler, NVTX and ITT alike, and has no public name for it. A span that nobody records would
    # take as long as a small operator.
    span = record_function(f"## {name} ##") if profiler._is_profiler_enabled else _NOTHING
    return span if _clock is None else _Timed(_clock, name, span)


class _Timed:
    """A phase under a running clock."""

    def __init__(self, clock: PhaseClock, name: str, span: AbstractContextManager[object]) -> None:
        self._clock, self._name, self._span = clock, name, span

    def __enter__(self) -> None:
        self._clock.enter(self._name)
        self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.__exit__(kind, error, trace)
        self._clock.leave()


def mark_features(features: Tensor) -> None:
    """Let a running clock tell the backward pass of the dense part from the exchange that follows it.

    Args:
        features: result of the lookups, whose gradient ends the backward pass of the dense part.
    """
    clock = _clock
    if clock is not None and features.requires_grad:
        hook: Callable[[Tensor], None] = lambda gradient: clock.turn("backward", GRADIENT_EXCHANGE)  # noqa: E731
        features.register_hook(hook)
