"""docs/architectures.md has every architecture, with figures that are true."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> dict[str, object]:
    return runpy.run_path(str(DOCS / "figures/draw_architectures.py"))


def test_costs(script: dict[str, object]) -> None:
    page = (DOCS / "architectures.md").read_text()
    for name, (products, parameters) in script["costs"]().items():
        row = next(line for line in page.splitlines() if line.startswith("|") and f"(#{name})" in line)
        assert row.endswith(f"| {products:,} | {parameters:,} |"), row


def test_drawings(script: dict[str, object]) -> None:
    page = (DOCS / "architectures.md").read_text()
    for name, figure in script["figures"]().items():
        assert (DOCS / f"figures/architectures/{name}.svg").read_text() == figure.svg(), "run draw_architectures.py"
        assert f"(figures/architectures/{name}.svg)" in page
