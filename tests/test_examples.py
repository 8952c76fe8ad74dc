"""The examples in docs/ run as they stand."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_processes

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def example(rank: int, name: str) -> tuple[Any, Any]:
    """Run ``main`` of one example."""
    result: tuple[Any, Any] = runpy.run_path(str(EXAMPLES / name))["main"]()
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


def test_torchrecs_pipeline_gives_the_losses_of_a_loop() -> None:
    for pipeline, loop in run_processes(2, example, "two_phase_in_a_pipeline.py"):
        assert pipeline == loop
        assert loop[-1] < 0.65 < loop[0]


@pytest.mark.parametrize("name", ["two_phase_in_torchrec", "balanced_tables_in_torchrec", "two_phase_in_a_pipeline"])
def test_a_script_runs_without_torchrun(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``python docs/examples/NAME.py``: a process group of its own, and no variable of torchrun's."""
    assert not {"RANK", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "loss" in capsys.readouterr().out
