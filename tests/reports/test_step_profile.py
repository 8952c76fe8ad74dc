"""`dlrm-mtl profile`, and the times of phases that a run logs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dlrm_mtl.reports.phase_names import PHASES
from dlrm_mtl.reports.step_profile import REST, phase_means
from dlrm_mtl.training.step_times import StepTimes
from tests import commands, synthetic
from tests.commands import losses, write_config

TRAINING = {"max_steps": 6, "log_every": 3, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=200)
    return write_config(dataset / "run.yaml", synthetic.config(dataset, training=TRAINING))


def test_the_profile_of_two_processes_leaves_only_what_was_asked_for(config: Path, tmp_path: Path) -> None:
    where = ("--output", "traces", "--html", "profile.html")
    done = commands.run("profile", config, "--steps", "4", *where, processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 steps of" in done.stdout
    assert "on 2 process(es)" in done.stdout
    for name in (
        "input exchange",
        "lookup",
        "gradient exchange",
        "agreement",
        "dense optimizer",
        "ms on all processes",
    ):
        assert name in done.stdout
    assert "<h2>Phases</h2>" in (tmp_path / "profile.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"traces", "profile.html"}
    assert {path.name for path in (tmp_path / "traces").iterdir()} == {"rank_0.json.gz", "rank_1.json.gz"}
    with gzip.open(tmp_path / "traces" / "rank_1.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"## input exchange ##", "## lookup ##", "## row gradients ##", "## apply ##"} <= names


def test_a_mistake_is_a_sentence(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = commands.run("profile", config, "--output", tmp_path / "file")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("is a file, not a folder; name a folder with --output.")


def test_phases_and_the_rest_are_the_step() -> None:
    times = StepTimes([{"lookup": 1.0, "forward": 9.0}, {"lookup": 2.0, "apply": 1.0}], [10.0, 6.0])
    assert phase_means(times) == {"lookup": 1.5, "apply": 0.5, REST: 6.0}


def test_times_of_phases_are_logged_and_change_no_loss(config: Path, tmp_path: Path) -> None:
    for name, value in (("without", "false"), ("with", "true")):
        done = commands.run("train", config, "--output", tmp_path / name, "--set", f"training.phase_times={value}")
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "with" / "metrics.jsonl") == losses(tmp_path / "without" / "metrics.jsonl")
    entries = commands.read_metrics(tmp_path / "with" / "metrics.jsonl")
    for entry in (entry for entry in entries if entry["kind"] == "train"):
        times = {name: value for name, value in entry.items() if name.startswith("phase/")}
        known = {f"phase/{name.replace(' ', '_')}" for name in PHASES}
        assert {"phase/waiting_for_data", "phase/lookup", "phase/apply", "phase/dense"} <= set(times) & known
        assert 0 < sum(times.values()) <= entry["seconds"]
    plain = commands.read_metrics(tmp_path / "without" / "metrics.jsonl")
    assert not [name for entry in plain for name in entry if name.startswith("phase/")]
