"""The command simulate: its figures, and a user's mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.scaling.report import show_simulation
from tests import commands, synthetic


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=256)
    return commands.write_config(folder / "run.yaml", synthetic.config(folder))


def test_the_figures_of_a_simulation(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "simulated.json"
    show_simulation(run, ["data.lanes=8"], None, [4, 8], ["row_wise", "grid_shard"], "h100x8", 2, file)
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
        show_simulation(run, ["data.lanes=8"], None, worlds, types, hardware, per_host, None)
    assert str(raised.value).startswith(sentence)


def test_hardware_without_a_figure(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.yaml"
    file.write_text("name: half\ndevice: cpu\n")
    with pytest.raises(UserError, match=r"half\.yaml"):
        show_simulation(run, None, None, [2], [], str(file), None, None)
