"""Names on the console are data, not markup; what is a terminal."""

from __future__ import annotations

import sys

import pytest

from dlrm_mtl.console import Bar, console, is_terminal, metrics_table, plan_table
from dlrm_mtl.reports.page import Cell, PageTable
from dlrm_mtl.reports.terminal import rich_table

NAMES = ["click[/7d]", "ctr[a]", "[bold]", ":smile:", "a\\[b]", "[link=x]", "100%", "ü"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    entry = {
        "table": name,
        "rows": 1,
        "dim": 4,
        "mib": 1.0,
        "type": name,
        "shards": [],
        "ranks": "all",
        "weights_mib": [1.0],
        "state_mib": [0.1],
    }
    tables = [
        metrics_table(name, {f"{name}/auc": 0.5}, [name]),
        plan_table([entry]),
        rich_table(PageTable([name], [[name], [Cell(name, strong=True)]], caption=name)),
    ]
    for table in tables:
        console().print(table)
        assert capfd.readouterr().out.count(name) >= 2
    console().print(f"{name}: done")
    with Bar(name, 1, shown=True) as bar:
        bar.update(1, name)
    assert capfd.readouterr().out.count(name) >= 3


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, True), ({"SLURM_STEP_ID": "0"}, False), ({"SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "4711"}, True)],
)
def test_the_terminal_that_slurm_gives_to_a_job_is_none(
    variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_STEP_ID", "SLURM_PTY_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert is_terminal() == console().is_terminal == expected
