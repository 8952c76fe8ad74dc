"""Phases of a step are timed without those inside them, and only while a clock runs."""

from __future__ import annotations

import pytest
import torch

from dlrm_mtl.core import phases
from dlrm_mtl.core.phases import PhaseClock, mark_features, phase


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows the sum of this list."""
    gone = [0.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: sum(gone))
    return gone


def test_a_phase_inside_another_is_not_counted_twice(ticks: list[float]) -> None:
    with PhaseClock(torch.device("cpu")) as clock:
        ticks.append(1.0)
        with phase("outer"):
            ticks.append(2.0)
            with phase("inner"):
                ticks.append(4.0)
            ticks.append(8.0)
        with phase("inner"):
            ticks.append(16.0)
        ticks.append(32.0)
        assert clock.take() == {"outer": 10.0, "inner": 20.0}
        assert clock.take() == {}
    with phase("outer"):
        ticks.append(1.0)
    assert clock.take() == {}


def test_backward_turns_into_the_exchange_once_the_gradient_of_the_features_is_known(ticks: list[float]) -> None:
    table = torch.ones(3, requires_grad=True)
    table.register_hook(lambda gradient: ticks.append(5.0))
    with PhaseClock(torch.device("cpu")) as clock:
        features = table * 2
        mark_features(features)
        result = features * 3
        result.register_hook(lambda gradient: ticks.append(2.0))
        with phase("backward"):
            result.sum().backward()
        assert clock.take() == {"backward": 2.0, phases.GRADIENT_EXCHANGE: 5.0}


def test_a_clock_stops_after_an_error(ticks: list[float]) -> None:
    clock = PhaseClock(torch.device("cpu"))

    def fail() -> None:
        with clock, phase("outer"):
            ticks.append(1.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with phase("outer"):
        ticks.append(2.0)
    assert clock.take() == {"outer": 1.0}


def test_spans_are_recorded_while_a_profiler_runs() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as traced, phase("a phase"):
        pass
    assert [event.key for event in traced.key_averages() if event.key.startswith("##")] == ["## a phase ##"]
