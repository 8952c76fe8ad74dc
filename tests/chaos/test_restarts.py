"""Restarts of ranks and agents: twenty of twenty. The fast form is in tests/test_launcher.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.restarts import CASES, Case, restarts


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_twenty_restarts_of_twenty(tmp_path: Path, case: Case) -> None:
    assert restarts(case, 20, tmp_path) == 20
