"""Clean exit after Ctrl-C or SIGTERM: finish the step, save a checkpoint, say how to continue."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType

GRACE_SECONDS = 5.0
"""Seconds in which a repeated signal is ignored: one Ctrl-C reaches a worker twice, from the terminal and from its launcher."""


class Interrupted(Exception):
    """Training stopped after a signal and a checkpoint; the command line exits with 128 + the signal's number."""

    def __init__(self, number: int, message: str, resumable: bool = True) -> None:
        super().__init__(message)
        self.number = number
        self.resumable = resumable


class Interruption:
    """Context that records the first SIGINT or SIGTERM instead of dying from it; a second one ends the process at once.

    It records nothing outside the main thread, where Python allows no signal handlers.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._noted_at = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._noted_at = number, time.monotonic()
        elif time.monotonic() - self._noted_at > GRACE_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
