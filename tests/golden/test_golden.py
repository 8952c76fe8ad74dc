"""Losses and checkpoints of the past: what training computes does not change when the code does.

``tests/golden/record.py`` wrote the files, and says when they may be rewritten.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import commands
from tests.golden import record


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the golden runs, trained by today's code, and of the old run, trained on from its first checkpoint."""
    folder = tmp_path_factory.mktemp("golden")
    old = shutil.copytree(record.OLD_RUN, folder / "old")
    (old / "checkpoints" / "latest").write_text("step_00000010")
    shutil.rmtree(old / "checkpoints" / "step_00000020")
    record.repeat(folder)
    return folder


@pytest.mark.parametrize("name", record.NAMES)
def test_losses_are_those_of_the_record(name: str, repeated: Path) -> None:
    golden = json.loads((record.HERE / f"{name}.json").read_text())
    found = json.loads((repeated / f"{name}.json").read_text())
    if record.machine() == record.RECORDED_ON:
        assert found["losses"] == golden["losses"]
    # NumPy, which computes the metrics, chooses its instructions by the processor.
    # A later release may know more metrics.
    known = {key: found["test"][key] for key in golden["test"]}
    assert known == pytest.approx(golden["test"], rel=1e-12 if record.machine() == record.RECORDED_ON else 1e-4)
    for step, losses in golden["losses"].items():
        assert found["losses"][step] == pytest.approx(losses, rel=1e-5), f"step {step}"


def test_an_old_run_evaluates_as_it_did(tmp_path: Path) -> None:
    run = shutil.copytree(record.OLD_RUN, tmp_path / "run")
    before = json.loads((run / "results.json").read_text())["test"]
    done = commands.run("evaluate", run, "--checkpoint", "best", cwd=record.ROOT)
    assert done.returncode == 0, done.stderr
    assert f"{before['is_click/auc']:.4f}" in done.stdout
    assert f"{before['long_view/log_loss']:.4f}" in done.stdout


def test_an_old_run_is_trained_on_bit_for_bit(repeated: Path) -> None:
    """From its first checkpoint, on to the end that it had."""
    golden = commands.losses(record.OLD_RUN / "metrics.jsonl")
    found = commands.losses(repeated / "old" / "metrics.jsonl")
    assert found.keys() == golden.keys()
    for step, losses in golden.items():
        assert found[step] == losses or record.machine() != record.RECORDED_ON, f"step {step}"
        assert found[step] == pytest.approx(losses, rel=1e-5), f"step {step}"
