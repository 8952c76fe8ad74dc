"""A job evaluates the checkpoints of a run beside the one that trains it, and writes nothing into the run's folder."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import fs

import dlrm_mtl
from tests import synthetic
from tests.commands import Command, kill_tree, start
from tests.commands import run as command

TRAINING: dict[str, Any] = {"epochs": 1, "log_every": 1, "evaluate_every": 2, "keep_checkpoints": 9}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set ``data``, the configuration ``run.yaml``, and the run ``run`` with checkpoints after steps 2, 4, 6 and 7."""
    home = tmp_path_factory.mktemp("watch")
    synthetic.write_dataset(home / "data", rows=400)
    (home / "run.yaml").write_text(yaml.safe_dump(synthetic.config(home / "data", training=TRAINING)))
    dlrm_mtl.train(dlrm_mtl.load_config(home / "run.yaml"), home / "run", progress=False)
    return home


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def validations(run: Path) -> list[dict[str, Any]]:
    """What the training job itself found on the validation split."""
    return [entry for entry in lines(run / "metrics.jsonl") if entry["kind"] == "validation"]


def without_run(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "run"} for entry in entries]


def wait_until(condition: Callable[[], bool], process: Command) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and not condition():
        assert process.poll() is None
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("processes", [1, 2])
def test_all_checkpoints_of_a_run_that_has_ended(home: Path, tmp_path: Path, processes: int) -> None:
    before = content(home / "run")
    output = tmp_path / "metrics.jsonl"
    done = command("evaluate", home / "run", "--watch", "--every", 0.2, "--output", output, processes=processes)
    assert done.returncode == 0, done.stderr
    assert [entry["step"] for entry in lines(output)] == [2, 4, 6, 7]
    for found, known in zip(without_run(lines(output)), validations(home / "run"), strict=True):
        assert found == pytest.approx(known) if processes == 2 else found == known
    assert f"{home / 'run'}: step 4: validation: AUC click 0." in done.stdout
    assert "the run has ended; 4 checkpoint(s) evaluated\n" in done.stdout
    assert content(home / "run") == before


@pytest.fixture
def started() -> Iterator[list[Command]]:
    """Commands that are ended with the test."""
    commands: list[Command] = []
    yield commands
    for each in commands:
        if each.poll() is None:
            kill_tree(each)


def test_beside_a_training_job(home: Path, tmp_path: Path, started: list[Command]) -> None:
    """It waits for the run to begin, follows it, is stopped and started again, and ends with it."""
    output = tmp_path / "metrics.jsonl"

    def begin(name: str, *arguments: object) -> Command:
        (tmp_path / f"{name}.log").touch()
        started.append(start(*arguments, log=tmp_path / f"{name}.log"))
        return started[-1]

    def said(name: str) -> str:
        return (tmp_path / f"{name}.log").read_text()

    watching = ("evaluate", tmp_path / "run", "--watch", "--every", 0.1, "--output", output)
    watch = begin("watch", *watching)
    wait_until(lambda: "there is no run here yet; waiting for it" in said("watch"), watch)
    done = command(*watching)
    assert (done.returncode, "another job is writing this file" in done.stderr) == (2, True), done.stderr
    training = {**TRAINING, "evaluate_every": 1, "epochs": 200, "early_stopping": {"patience": 0}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(synthetic.config(home / "data", training=training)))
    train = begin("train", "train", tmp_path / "run.yaml", "--output", tmp_path / "run")
    wait_until(lambda: len(lines(output)) >= 2, watch)
    assert train.poll() is None
    kill_tree(watch, signal.SIGTERM)
    assert watch.wait(60) == 128 + signal.SIGTERM
    assert "go on with the same command" in said("watch")
    kept = lines(output)
    with open(output, "a") as file:
        file.write('{"kind": "validation", "step": 9')  # as if it had been killed while writing
    again = begin("again", *watching)
    kill_tree(train, signal.SIGTERM)
    train.wait(60)
    last = validations(tmp_path / "run")[-1]["step"] + 2
    more = ["--resume", "--set", f"training.max_steps={last}"]
    done = command("train", tmp_path / "run.yaml", "--output", tmp_path / "run", *more)
    assert done.returncode == 0, done.stderr
    assert again.wait(120) == 0, said("again")
    found = lines(output)
    assert found[: len(kept)] == kept
    steps = [entry["step"] for entry in found]
    assert steps == sorted(set(steps))
    assert steps[-1] == last
    known = {entry["step"]: entry for entry in validations(tmp_path / "run")}
    assert all(entry == known[entry["step"]] for entry in without_run(found))
    missed = len(set(known) - set(steps))
    assert f"{missed} missed" in said("again") if missed else "missed" not in said("again")


def test_checkpoints_that_are_gone_or_damaged(home: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    file = next((run / "checkpoints" / "step_00000004").glob("rank_*"))
    file.write_bytes(file.read_bytes()[:-100_000])
    done = command("evaluate", run, "--watch", "--every", 0.1)
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [entry["step"] for entry in printed] == [6, 7]
    assert "removed before evaluation: step_00000002; keep more" in done.stderr
    assert "step_00000004: left out: " in done.stderr
    assert "2 checkpoint(s) evaluated, 2 missed" in done.stdout


def test_what_is_there_is_not_evaluated_again(home: Path, tmp_path: Path, call: Any) -> None:
    output = tmp_path / "metrics.jsonl"
    watching = ("evaluate", home / "run", "--watch", "--every", 0.1, "--output", output)
    assert "4 checkpoint(s) evaluated" in call(*watching)[1]
    first = output.read_text()
    assert "0 checkpoint(s) evaluated" in call(*watching)[1]
    assert output.read_text() == first
    assert "4 checkpoint(s) evaluated" in call(*watching, "--split", "test")[1]
    assert [entry["kind"] for entry in lines(output)] == ["validation"] * 4 + ["test"] * 4
    best = json.loads((home / "run" / "results.json").read_text())
    at_best = next(entry for entry in lines(output)[4:] if entry["step"] == best["step"])
    assert {key: at_best[key] for key in best["test"]} == best["test"]


def objects(bucket: Any) -> list[tuple[str, int, int]]:
    found = bucket.get_file_info(fs.FileSelector("bucket", recursive=True))
    return [(each.path, each.size, each.mtime_ns) for each in found if each.is_file]


def test_a_run_on_an_object_store(home: Path, tmp_path: Path, bucket: Any, call: Any) -> None:
    fs.copy_files(str(home / "run"), "bucket/run", destination_filesystem=bucket)
    before = objects(bucket)
    output = tmp_path / "metrics.jsonl"
    code, said = call("evaluate", "s3://bucket/run", "--watch", "--every", 0.1, "--output", output)
    assert code == 0, said
    assert without_run(lines(output)) == validations(home / "run")
    assert objects(bucket) == before


MISTAKES: dict[str, tuple[list[str], str]] = {
    "into the run": (
        ["--watch", "--output", "{run}/metrics.jsonl"],
        "lies in the run's folder, where only its training job",
    ),
    "onto a store": (["--watch", "--output", "s3://bucket/x.jsonl"], "which an object store cannot do"),
    "another file": (["--watch", "--output", "{other}"], "holds other lines than those of an evaluation"),
    "one checkpoint": (["--watch", "--checkpoint", "best"], "does not go with --watch"),
    "without watch": (["--output", "x.jsonl"], "--output x.jsonl: goes with --watch"),
    "no split": (["--watch", "--split", "nothing"], "there is no split 'nothing'"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(home: Path, tmp_path: Path, what: str, call: Any) -> None:
    options, sentence = MISTAKES[what]
    (tmp_path / "other").write_text("one line\n")
    filled = [option.format(run=home / "run", other=tmp_path / "other") for option in options]
    code, said = call("evaluate", home / "run", *filled)
    assert (code, sentence in said) == (2, True), said
    assert (tmp_path / "other").read_text() == "one line\n"
