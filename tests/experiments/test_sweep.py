"""Sweeps with real trainings: equal effort, fresh seeds for the winners, and the same results after a kill."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest
import yaml

from dlrm_mtl.core.yaml_text import to_yaml
from dlrm_mtl.experiments.trials import Ledger, Outcome
from dlrm_mtl.reports.groups import mean_and_interval
from tests.commands import run, start

QUICK = {"training.max_steps": 6, "training.evaluate_every": 3, "training.log_every": 2}
SWEEP = {
    "config": "configs/kuairand_mmoe_debug.yaml",
    "set": QUICK,
    "parameters": {"optimizer.dense.learning_rate": [0.001, 0.1]},
    "methods": {
        "adam": {"set": {"optimizer.dense": {"name": "adam"}}},
        "adagrad": {"set": {"optimizer.dense": {"name": "adagrad"}}},
    },
    "final_seeds": 2,
    "equal_effort": True,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep that was never interrupted: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, "config": os.path.relpath(SWEEP["config"], folder)}, sort_keys=False))
    done = run("sweep", file, "--output", folder / "out", "--parallel", 2, "--html", folder / "page.html")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def results(folder):
    return json.loads((folder / "out/results.json").read_text())


def test_the_winner_of_each_method_is_chosen_on_validation_and_trained_on_fresh_seeds(finished):
    folder, _ = finished
    found = results(folder)
    assert found["seeds"] == {"tuning": [1], "final": [2, 3]}
    assert len(found["points"]) == 4
    for method in ("adam", "adagrad"):
        own = [point for point in found["points"] if point["method"] == method]
        best = max(own, key=lambda point: point["value"])
        assert found["best"][method] == best["point"]
        spread = found["final"][method]["test"]["mean/auc"]
        values = []
        for seed in (2, 3):
            inner = folder / f"out/trials/{method}-final-seed{seed}"
            config = yaml.safe_load((inner / "config.yaml").read_text())
            assert config["seed"] == seed
            assert config["optimizer"]["dense"]["learning_rate"] == best["point"]["optimizer.dense.learning_rate"]
            values.append(json.loads((inner / "results.json").read_text())["test"]["mean/auc"])
        assert spread["values"] == values
        assert spread["half_95"] == pytest.approx(12.7062047 * np.std(values, ddof=1) / np.sqrt(2), rel=1e-6)


def test_tables_and_page_show_methods_and_parameters(finished):
    folder, output = finished
    page = (folder / "page.html").read_text()
    for text in (" ".join(output.split()), page):
        assert "difference to adam" in text
        assert "learning_rate" in text
    assert page.count('role="img"') == 1
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://www.w3.org", "")


def test_a_sweep_that_is_finished_trains_nothing_again(finished):
    folder, _ = finished
    before = (folder / "out/trials.jsonl").read_text()
    done = run("sweep", folder / "sweep.yaml", "--output", folder / "out")
    assert done.returncode == 0
    assert (folder / "out/trials.jsonl").read_text() == before


def test_a_killed_sweep_goes_on_and_ends_with_the_same_results(finished, tmp_path):
    folder, _ = finished
    out = tmp_path / "out"
    log = tmp_path / "log"
    killed = start("sweep", folder / "sweep.yaml", "--output", out, "--parallel", 2, log=log)
    deadline = time.monotonic() + 120
    while not (out / "trials.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(60)
    done = run("sweep", folder / "sweep.yaml", "--output", out, "--parallel", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    own, other = json.loads((out / "results.json").read_text()), results(folder)
    for key in ("points", "best", "final"):
        left, right = own[key], other[key]
        if key == "points":
            left, right = (sorted(each, key=lambda p: (p["method"], p["number"])) for each in (left, right))
        assert left == right


def test_a_training_that_fails_is_shown_and_tried_again(tmp_path):
    done = run(
        "sweep",
        "configs/kuairand_mmoe_debug.yaml",
        *("--grid", "data.path=datasets/kuairand_pure,/nowhere"),
        *(word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")),
        *("--output", tmp_path / "out"),
    )
    assert done.returncode == 1
    assert "/nowhere" in done.stdout
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert list(found["failed"]) == ["all-001-seed1"]
    assert len(found["points"]) == 1


def test_the_ledger_ignores_a_line_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "trials.jsonl"
    ledger = Ledger(path)
    ledger.add(Outcome("a", "finished", validation={"mean/auc": float("nan")}))
    ledger.add(Outcome("b", "failed", "no"))
    path.write_text(path.read_text() + '{"name": "c", "sta')
    again = Ledger(path)
    assert set(again.outcomes) == {"a", "b"}
    assert again.settled("a") is not None
    assert again.settled("b") is None
    again.add(Outcome("c", "finished"))
    assert set(Ledger(path).outcomes) == {"a", "b", "c"}


def test_values_are_written_as_yaml_of_one_line():
    for value in (1, 0.001, "adam", {"name": "adam", "betas": [0.9, 0.999]}, [[1], []], None, True, "a: b"):
        text = to_yaml(value)
        assert "\n" not in text
        assert yaml.safe_load(text) == value


def test_intervals_are_those_of_student():
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.302653 * 1.0 / np.sqrt(3), rel=1e-6))


def test_a_training_without_finite_gradients_is_an_outcome_not_a_failure(tmp_path):
    done = run(
        *("sweep", "configs/kuairand_mmoe_debug.yaml", "--output", tmp_path / "out", "--parallel", 2),
        *("--grid", "optimizer.dense.learning_rate=0.01,1.0e+30", "--set", "optimizer.dense={name: sgd}"),
        *("--set", "training.max_steps=14", "--set", "training.evaluate_every=14", "--set", "training.log_every=1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = Ledger(tmp_path / "out/trials.jsonl").outcomes
    assert [outcomes[f"all-{number:03d}-seed1"].status for number in (0, 1)] == ["finished", "diverged"]
