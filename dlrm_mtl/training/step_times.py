"""Measurement of a few training steps: the time of their phases, then the operators of a few more."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from dlrm_mtl.core.phases import PhaseClock
from dlrm_mtl.training.events import Listener, Step
from dlrm_mtl.training.interruption import Interrupted

WARM_UP = 5
"""Steps before those that are measured."""
TRACED = 5
"""Steps that are traced after those that are measured. The first of them pays for the start of tracing and is left out."""


class EnoughMeasured(Exception):
    """Everything is measured; ends the training loop."""


@dataclass
class Operator:
    """An operator of the traced steps; times leave out the operators that it calls."""

    name: str
    calls: float
    """Calls in a step."""
    seconds: float
    """Seconds in a step: of the device for one on a GPU, of the host otherwise."""


@dataclass
class StepTimes:
    """Measurement of a process."""

    phases: list[dict[str, float]] = field(default_factory=list)
    """Seconds of each phase, for each of the measured steps."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each of the measured steps."""
    operators: list[Operator] = field(default_factory=list)
    """Operators of the traced steps, the costliest one first."""
    memory: int = 0
    """Largest resident memory of the process so far, in bytes."""
    device_memory: int = 0
    """Largest memory on the GPU, in bytes; 0 without one."""


class StepMeasurement(Listener):
    """Listener that measures steps after :data:`WARM_UP` others, traces :data:`TRACED` more, and then ends the training.

    It raises :class:`EnoughMeasured` on every process.

    Args:
        steps: number of steps to measure.
        clock: running clock of the phases.
        trace: file of the trace; None to write none.
    """

    every_process = True

    def __init__(self, steps: int, clock: PhaseClock, trace: Path | None) -> None:
        self.times = StepTimes()
        self._steps = steps
        self._clock = clock
        self._trace = trace
        self._count = 0
        self._since = 0.0
        self._profile: profile | None = None

    def on_step(self, event: Step) -> None:
        """Note the times of a step; every process is at the same one."""
        signal = event.report.flag // 2
        if signal:
            raise Interrupted(signal, "stopped before everything was measured")
        phases, seconds = self._clock.take(), time.perf_counter() - self._since
        if WARM_UP <= self._count < WARM_UP + self._steps:
            self.times.phases.append(phases)
            self.times.steps.append(seconds)
        self._count += 1
        if self._count == WARM_UP + self._steps:
            self.times.memory, self.times.device_memory = peaks()
        traced = self._count - WARM_UP - self._steps
        if traced == 1:
            self._start_trace()
        elif traced == TRACED:
            self._end_trace()
            raise EnoughMeasured
        self._clock.take()
        self._since = time.perf_counter()

    def _start_trace(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()

    def _end_trace(self) -> None:
        assert self._profile is not None
        self._profile.stop()
        self.times.operators = operators(self._profile, TRACED - 1)
        if self._trace is not None:
            self._trace.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self._trace))


def operators(traced: profile, steps: int) -> list[Operator]:
    """Operators of ``steps`` traced steps, the costliest one first; spans of phases are left out."""
    found = []
    for event in traced.key_averages():
        on_device = event.device_type != DeviceType.CPU
        microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
        if microseconds > 0 and not event.key.startswith("##"):
            found.append(Operator(event.key, event.count / steps, microseconds / 1e6 / steps))
    return sorted(found, key=lambda operator: -operator.seconds)


def peaks() -> tuple[int, int]:
    """Largest memory of this process so far, in bytes: on the host, and on its GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, device
