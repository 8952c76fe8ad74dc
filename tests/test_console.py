"""Names on the console are data, not markup."""

from __future__ import annotations

import pytest

from dlrm_mtl.console import Bar, console, metrics_table, plan_table
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
