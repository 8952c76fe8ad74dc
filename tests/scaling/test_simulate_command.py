"""The command simulate: its figures, and a user's mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.scaling.report import show_simulation
from tests import commands, synthetic
from tests.browser import find_browser, running_browser
from tests.reports.pages import Page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=256)
    return commands.write_config(folder / "run.yaml", synthetic.config(folder))


def test_the_figures_of_a_simulation(run: Path, tmp_path: Path) -> None:
    file, page = tmp_path / "simulated.json", tmp_path / "simulated.html"
    show_simulation(run, ["data.lanes=8"], None, [4, 8], ["row_wise", "grid_shard"], "h100x8", 2, file, page)
    results = json.loads(file.read_text())["results"]
    assert [(each["sharding"], each["processes"], each["hosts"]) for each in results] == [
        ("row_wise", 4, 2),
        ("grid_shard", 4, 2),
        ("row_wise", 8, 4),
        ("grid_shard", 8, 4),
    ]
    for each in results:
        assert each["fits"]
        assert each["seconds"]["total"] == pytest.approx(sum(each["seconds"].values()) / 2)
        assert {rank["rank"] for rank in each["simulated"]} >= {0}
        assert min(each["imbalance"].values()) >= 1.0
    # A row_wise process holds some rows of every feature, so that it gets a length of each for all rows of the batch.
    lengths = 4 * 64 * 4
    assert any(c["received"] == lengths for c in results[0]["simulated"][0]["collectives"])
    shown = Page(page.read_text())
    assert shown.headings[1:] == [
        "By the number of processes",
        "4 process(es) on 2 host(s)",
        "8 process(es) on 4 host(s)",
    ]
    [step] = [texts for plot, texts in shown.plots.items() if plot.startswith("Predicted step, ms by")]
    assert {"4", "8", "processes"} <= set(step)
    bars = [texts for plot, texts in shown.plots.items() if plot.startswith("Parts of the predicted step")]
    assert all({"row_wise", "grid_shard", "overhead", "ids"} <= set(texts) for texts in bars)
    for each in results:
        assert f"{1e3 * each['seconds']['total']:.2f}" in shown.texts


def test_what_is_left_out_stands_on_the_page(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "simulated.html"
    show_simulation(run, ["data.lanes=2"], None, [2], [], "h100x8", None, None, page)
    shown = Page(page.read_text())
    assert "grid_shard on 2: left out: grid_shard: is row_wise on a single host." in shown.texts
    assert shown.headings[1:] == ["2 process(es) on 1 host(s)"], "nothing grows with one number of processes"


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(run: Path, tmp_path: Path, dark: bool) -> None:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium or Chrome is installed")
    page = tmp_path / "simulated.html"
    show_simulation(run, ["data.lanes=8"], None, [4, 8], [], "h100x8", 2, None, page)
    with running_browser(path) as browser:
        for width in (360, 1280):
            found = browser.visit(page, width, dark)
            assert found.console == []
            assert found.requests == [page.resolve().as_uri()]
            assert found.width <= width


@pytest.mark.parametrize(
    ("worlds", "types", "hardware", "per_host", "sentence"),
    [
        ([3], [], "h100x8", None, "data.lanes: "),
        (
            [8],
            ["rowwise"],
            "h100x8",
            None,
            "--sharding rowwise: there is no such sharding type; did you mean 'row_wise'?",
        ),
        ([8], [], "h100", None, "--hardware h100: there is no such hardware; "),
        ([8], [], "h100x8", 3, "--world-size 8: is no multiple of the 3 processes of a host; "),
        ([8], ["grid_shard"], "h100x8", None, "grid_shard: is row_wise on a single host."),
    ],
)
def test_mistakes(
    run: Path, worlds: list[int], types: list[str], hardware: str, per_host: int | None, sentence: str
) -> None:
    with pytest.raises(UserError) as raised:
        show_simulation(run, ["data.lanes=8"], None, worlds, types, hardware, per_host, None, None)
    assert str(raised.value).startswith(sentence)


def test_hardware_without_a_figure(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.yaml"
    file.write_text("name: half\ndevice: cpu\n")
    with pytest.raises(UserError, match=r"half\.yaml"):
        show_simulation(run, None, None, [2], [], str(file), None, None, None)
