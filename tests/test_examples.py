"""The examples in docs/ run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

from tests.processes import run_processes

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def example(rank: int, name: str) -> tuple[float, float]:
    """Run ``main`` of one example."""
    result: tuple[float, float] = runpy.run_path(str(EXAMPLES / name))["main"]()
    return result


def test_two_phase_update_under_a_plain_torchrec_model() -> None:
    for first, last in run_processes(2, example, "two_phase_in_torchrec.py"):
        assert first > 0.65
        assert last < 0.3


def test_balanced_tables_under_a_plain_torchrec_model() -> None:
    results = run_processes(2, example, "balanced_tables_in_torchrec.py")
    assert results[0] == results[1]
    plain, balanced = results[0]
    assert balanced < 0.5 < 0.8 < plain
