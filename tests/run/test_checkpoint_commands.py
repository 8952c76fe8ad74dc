"""``dlrm-mtl checkpoint list | verify | show | prune``, and checkpoints by short names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import dlrm_mtl
from tests import synthetic

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after each of four steps, three of which are kept besides the best."""
    home = tmp_path_factory.mktemp("trained")
    synthetic.write_dataset(home / "data", rows=300)
    training = {"epochs": 1, "max_steps": 4, "checkpoint_every": 1, "evaluate_every": 1, "keep_checkpoints": 4}
    (home / "run.yaml").write_text(yaml.safe_dump(synthetic.config(home / "data", training=training)))
    dlrm_mtl.train(dlrm_mtl.load_config(home / "run.yaml"), home / "run", progress=False)
    (home / "run" / "checkpoints" / "best").write_text("step_00000002")
    return home / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_list(run: Path, call: Call) -> None:
    (run / "checkpoints" / "step_00000001" / "progress.json").unlink()
    os.truncate(run / "checkpoints" / "step_00000003" / "index.json", 10)
    code, printed = call("checkpoint", "list", run)
    assert code == 0
    lines = {line.split()[1]: line for line in printed.splitlines() if " step_" in line and "KiB" in line}
    assert "incomplete" in lines["step_00000001"]
    assert "best" in lines["step_00000002"]
    assert "damaged" in lines["step_00000003"]
    assert "latest" in lines["step_00000004"]
    assert "step_00000003/index.json: does not have the checksum" in printed
    code, printed = call("checkpoint", "list", run, "--json")
    listed = json.loads(printed)
    assert [each["format"] for each in listed] == [None, 2, None, 2]
    sizes = sum(path.stat().st_size for path in (run / "checkpoints" / "step_00000002").iterdir())
    assert listed[1]["size"] == sizes


def test_verify(run: Path, call: Call) -> None:
    code, printed = call("checkpoint", "verify", run)
    assert code == 0
    assert printed.count(": good, ") == 4
    file = run / "checkpoints" / "step_00000003" / "rank_00000_0.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, printed = call("checkpoint", "verify", run)
    assert code == 2
    assert printed.count(": good, ") == 3
    assert printed.count("error: ") == 1
    assert "step_00000003/rank_00000_0.safetensors: " in printed
    tensors = json.loads((run / "checkpoints" / "step_00000003" / "index.json").read_text())["tensors"]
    assert any(f" {name} " in printed for name in tensors), "the tensor is named"
    assert call("checkpoint", "verify", run, "--checkpoint", "step_2")[0] == 0
    code, printed = call("checkpoint", "verify", run, "--checkpoint", "step_9")
    assert code == 2
    assert "there is no checkpoint 'step_9'" in printed


def test_show(run: Path, call: Call) -> None:
    code, printed = call("checkpoint", "show", run, "--checkpoint", "step_3")
    assert code == 0
    assert "200 x 8" in printed
    assert "step 3, steps_applied 3" in printed
    assert "trained on synthetic: 6 features; tasks click, buy" in printed
    code, printed = call("checkpoint", "show", run, "--json")
    shown = json.loads(printed)
    assert shown["state"]["step"] == 4
    assert shown["state"]["contract"]["tasks"] == ["click", "buy"]


def test_prune(run: Path, call: Call) -> None:
    folder = run / "checkpoints"

    def there() -> list[str]:
        return sorted(path.name for path in folder.glob("step_*"))

    before = there()
    code, printed = call("checkpoint", "prune", run, "--keep", "1", "--dry-run")
    assert code == 0
    assert "would be removed: step_00000001, step_00000003" in printed
    assert there() == before
    file = folder / "step_00000004" / "rank_00000_0.safetensors"
    content = file.read_bytes()
    os.truncate(file, len(content) - 1)
    assert call("checkpoint", "prune", run, "--keep", "1")[0] == 2
    assert there() == before, "the latest is damaged, so nothing goes"
    file.write_bytes(content)
    assert call("checkpoint", "prune", run, "--keep", "1")[0] == 0
    assert there() == ["step_00000002", "step_00000004"]
    assert "removed: nothing" in call("checkpoint", "prune", run, "--keep", "1")[1]


def test_no_run(tmp_path: Path, call: Call) -> None:
    for command in ("list", "verify", "show"):
        code, printed = call("checkpoint", command, tmp_path)
        assert code == 2
        assert "there is no run here" in printed


def test_short_names_and_a_run_without_a_best_checkpoint(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = dlrm_mtl.open_run(run)
    assert opened.evaluate(checkpoint="step_3") == opened.evaluate(checkpoint="step_00000003")
    (run / "checkpoints" / "best").unlink()
    with caplog.at_level("INFO", logger="dlrm_mtl"):
        assert opened.evaluate() == opened.evaluate(checkpoint="step_4")
    assert "no checkpoint of this run is known to be the best; taking the latest, step_00000004" in caplog.text
