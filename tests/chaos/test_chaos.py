"""Runs that are killed end as if nothing had happened: five kills of `python -m tests.chaos`, which makes hundreds."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.rounds import TARGETS, Kill, Reference, chaos, planned

KILLS = [
    Kill("rank", "save", 1, 0.005, 1),
    Kill("agent", "step", 1, 0.02, 0),
    Kill("job", "save", 1, 0.01, 0),
    Kill("rank", "step", 2, 0.03, 0),
    Kill("agent", "save", 1, 0.0, 1),
]


def test_five_kills_leave_no_trace(tmp_path: Path) -> None:
    """With ids without a bound, on data that grow; each row is used once."""
    outcome = chaos(tmp_path / "round", Reference(tmp_path / "whole", processes=1), "growing data", KILLS)
    assert outcome.problems == []
    assert outcome.targets == [kill.target for kill in KILLS]


def test_rounds_are_drawn_by_seed_and_a_third_of_the_kills_aim_at_a_save() -> None:
    kills = [kill for number in range(300) for kill in planned(0, number)[1]]
    assert planned(0, 7) == planned(0, 7) != planned(1, 7)
    assert len(kills) >= 300
    assert sum(kill.moment == "save" for kill in kills) >= 0.3 * len(kills)
    assert {kill.target for kill in kills} == set(TARGETS)
