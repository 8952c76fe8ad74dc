"""Pages in a real browser, light and dark, narrow and wide; skipped where no browser is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dlrm_mtl.reports.compare import compare_runs
from tests.browser import Browser, find_browser, running_browser
from tests.reports.folders import write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium or Chrome is installed")
    with running_browser(path) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with everything that can make a page too wide."""
    folder = tmp_path_factory.mktemp("runs")
    long = {f"factor/{'table_' * 20}{number}": 1 / (number + 1) for number in range(20)}
    paths = [write_run(folder / f"{'a_run_of_a_very_long_name_' * 6}{seed}", seed=seed, more=long) for seed in (1, 2)]
    paths.append(write_run(folder / "<b>other", architecture="ple", finished=False))
    compare_runs(paths, folder / "page.html")
    return folder / "page.html"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_comparison(browser: Browser, page: Path, width: int, dark: bool) -> None:
    found = browser.visit(page, width, dark)
    assert found.console == []
    assert found.requests == [page.resolve().as_uri()]
    assert found.width <= width
    assert found.background == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    assert len(found.picture) > 20_000
