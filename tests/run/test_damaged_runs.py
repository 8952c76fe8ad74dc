"""Damaged files of a run, met by the command line: one sentence and exit code 2, or no effect at all.

The sweep over every file, tensor and damage is slow; a sample of it runs always.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import commands, synthetic
from tests.damage import DAMAGE, flip

LATEST = "checkpoints/step_00000004"
TRAINING: dict[str, Any] = {
    "max_steps": 4,
    "log_every": 1,
    "checkpoint_every": 2,
    "evaluate_every": 2,
    "keep_checkpoints": 3,
    "early_stopping": {"metric": "mean/log_loss"},
}
TOLD = "latest: names step_00000002, although step_00000004 is complete, too"
COMMANDS = ("evaluate", "predict", "resume")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, ``a`` and ``b``, written by two processes, with checkpoints after steps 2 and 4; the last is the best."""
    home = tmp_path_factory.mktemp("runs")
    synthetic.write_dataset(home / "data", rows=400)
    for seed, name in enumerate("ab"):
        config = synthetic.config(home / "data", training=TRAINING, seed=seed)
        commands.write_config(home / f"{name}.yaml", config)
        done = commands.run("train", home / f"{name}.yaml", "--output", home / name, processes=2)
        assert done.returncode == 0, done.stderr
        assert (home / name / "checkpoints" / "best").read_text() == "step_00000004"
    return home


class Use(NamedTuple):
    """What a command on a run gave."""

    done: subprocess.CompletedProcess[str]
    output: object
    """None where nothing came out."""


def use(home: Path, run: Path, command: str) -> Use:
    """Evaluate the run with its latest checkpoint, predict with the best one, or go on for two steps."""
    if command == "evaluate":
        done = commands.run("evaluate", run, "--checkpoint", "latest")
        table = [line for line in done.stdout.splitlines() if "│" in line]
        return Use(done, table or None)
    if command == "predict":
        target = run.parent / "predictions.csv"
        target.unlink(missing_ok=True)
        done = commands.run("predict", run, "--input", home / "data" / "test", "--output", target)
        assert not list(run.parent.glob("predictions.csv.tmp"))
        return Use(done, list(csv.reader(target.open())) if target.exists() else None)
    done = commands.run("train", home / "a.yaml", "--output", run, "--resume", "--set", "training.max_steps=6")
    results = run / "results.json"
    return Use(done, results.read_bytes() if results.is_file() else None)


@pytest.fixture(scope="module")
def undamaged(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What comes out of the run ``a`` as it is, by command."""
    folder = shutil.copytree(runs / "a", tmp_path_factory.mktemp("undamaged") / "a")
    found = {command: use(runs, folder, command) for command in COMMANDS}
    for each in found.values():
        assert each.done.returncode == 0, each.done.stderr
        assert each.output
    return {command: each.output for command, each in found.items()}


def content(folder: Path) -> dict[str, str]:
    """Checksums of the readable files below a folder, but for the lock."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "run.lock":
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Case(NamedTuple):
    """Damage to one file of the run ``a``."""

    file: str
    damage: str
    do: Callable[[Path, Path], object]
    """With the file and the folder of both runs."""
    harmless_to: tuple[str, ...] = ()
    """Commands that do not read what is damaged."""

    def __str__(self) -> str:
        return f"{self.file.rpartition('/')[2]}: {self.damage}"


def _plain(file: str, name: str) -> Case:
    return Case(file, name, lambda path, runs: DAMAGE[name](path))


def whole_files(run: Path) -> Iterator[Case]:
    """Every file of the latest checkpoint, damaged as a whole."""
    for path in sorted((run / LATEST).iterdir()):
        file = f"{LATEST}/{path.name}"
        for name in DAMAGE:
            if path.suffix == ".safetensors" and name.startswith("bit flipped"):
                continue  # see `tensors`
            yield _plain(file, name)
        yield Case(file, "unreadable", lambda path, runs: path.chmod(0))
        for other in ("a/checkpoints/step_00000002", f"b/{LATEST}"):
            yield Case(
                file,
                f"from {other}",
                lambda path, runs, other=other: shutil.copyfile(runs / other / path.name, path),  # type: ignore[misc]
            )


def tensors(run: Path) -> Iterator[Case]:
    """A bit flipped in every stored part of every tensor, in its checksums, and in the header of every file."""
    index = json.loads((run / LATEST / "index.json").read_text())
    for file in index["files"]:
        yield Case(f"{LATEST}/{file}", "bit flipped in the header", lambda path, runs: flip(path, 60))
    for name, tensor in index["tensors"].items():
        # Whoever predicts needs no state of optimizers.
        harmless = ("evaluate", "predict") if "_state." in name else ()
        for chunk in tensor["chunks"]:
            middle = (chunk["start"] + chunk["stop"]) // 2
            for what, at in ((f"{name}", middle), (f"the checksums of {name}", chunk["sums"])):
                yield Case(
                    f"{LATEST}/{chunk['file']}",
                    f"bit flipped in {what}",
                    lambda path, runs, at=at: flip(path, at),  # type: ignore[misc]
                    harmless,
                )


def pointers() -> Iterator[Case]:
    """The small files beside checkpoints; a remark tells of a pointer ``latest`` that cannot be followed."""
    for file in ("latest", "best", "run.json"):
        harmless = {"latest": COMMANDS, "best": ("evaluate", "resume"), "run.json": ()}[file]
        for name in DAMAGE:
            missing = file == "run.json" and name == "deleted"
            without = file == "best" and name == "deleted"  # then the latest one is taken, which is the same here
            yield _plain(f"checkpoints/{file}", name)._replace(harmless_to=COMMANDS if missing or without else harmless)
    for file in ("latest", "best"):
        yield Case(
            f"checkpoints/{file}",
            "of another step",
            lambda path, runs: path.write_text("step_00000002"),
            ("evaluate", "resume") if file == "best" else ("predict", "resume"),
        )
    yield Case(
        "checkpoints/run.json",
        "of another run",
        lambda path, runs: shutil.copyfile(runs / "b/checkpoints/run.json", path),
    )


def others() -> Iterator[Case]:
    """The files of a run beside checkpoints: what a command needs of them lies in checkpoints as well."""
    for file in ("config.yaml", "contract.json", "metrics.jsonl", "history.jsonl", "results.json", "run.lock"):
        for name in (*DAMAGE, "unreadable"):
            if name.startswith("bit") and file in ("config.yaml", "results.json"):
                continue  # texts without checksums, which users may change
            if name == "unreadable":
                yield Case(file, name, lambda path, runs: path.chmod(0), COMMANDS)
            else:
                yield _plain(file, name)._replace(harmless_to=COMMANDS)


def check(home: Path, tmp_path: Path, undamaged: dict[str, object], case: Case, command: str) -> str:
    """Run one command on a damaged copy of the run: refused, told of in a remark, or without an effect on what comes out."""
    run = Path(shutil.copytree(home / "a", tmp_path / "a"))
    try:
        path = run / case.file
        if case.file == "run.lock":
            path.write_text('{"token": "x", "host": "h", "pid": 1, "started": "1"}'.ljust(511) + "\n")
        before = content(run / "checkpoints")
        case.do(path, home)
        if case.damage != "unreadable":
            before = content(run / "checkpoints")
        done, output = use(home, run, command)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        if done.returncode == 0 and TOLD in done.stdout:
            return "told"
        if done.returncode == 0:
            assert command in case.harmless_to, f"silent: {done.stdout}"
            assert output == undamaged[command], f"another result: {done.stdout}"
            return "no effect"
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2
        assert len(errors) == len(done.stderr.splitlines()) == 1, done.stderr
        assert Path(case.file).name in errors[0] or f"error: {run}" in errors[0], errors[0]
        assert not list(run.rglob("*.tmp"))
        if command != "resume":
            assert output is None
        elif case.damage == "unreadable":
            path.chmod(0o644)
        if command == "resume" and "checkpoints" in case.file:
            assert content(run / "checkpoints") == before, "something was changed"
        return "refused"
    finally:
        shutil.rmtree(run)


@pytest.fixture
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets permissions of files count for commands also where tests are run by root."""
    monkeypatch.setitem(commands.ENVIRONMENT, commands.NO_OVERRIDE, "1")


SAMPLE = (
    ("index.json", "deleted", "evaluate"),
    ("index.json", "a folder", "predict"),
    ("progress.json", "emptied", "resume"),
    ("progress.json", "from a/checkpoints/step_00000002", "predict"),
    ("rank_00000_0.safetensors", "bit flipped in tables.item", "predict"),
    ("rank_00001_0.safetensors", "bit flipped in table_state.item.accumulator", "resume"),
    ("rank_00001_0.safetensors", "truncated", "evaluate"),
    ("rank_00001_0.safetensors", f"from b/{LATEST}", "evaluate"),
    ("rank_00000_0.safetensors", "unreadable", "resume"),
    ("best", "of another step", "predict"),
    ("metrics.jsonl", "bit flipped in the middle", "resume"),
    ("config.yaml", "truncated", "resume"),
)


def every_case(run: Path) -> list[Case]:
    return [*whole_files(run), *tensors(run), *pointers(), *others()]


@pytest.mark.usefixtures("no_override")
@pytest.mark.parametrize(("file", "damage", "command"), SAMPLE, ids=[" ".join(sample) for sample in SAMPLE])
def test_sample(runs: Path, tmp_path: Path, undamaged: dict[str, object], file: str, damage: str, command: str) -> None:
    found = [case for case in every_case(runs / "a") if Path(case.file).name == file and case.damage == damage]
    check(runs, tmp_path, undamaged, found[0], command)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("no_override")
@pytest.mark.parametrize("command", COMMANDS)
def test_sweep(runs: Path, tmp_path: Path, undamaged: dict[str, object], command: str) -> None:
    wrong, counts = [], {"refused": 0, "told": 0, "no effect": 0}
    cases = every_case(runs / "a")
    for case in cases:
        try:
            counts[check(runs, tmp_path, undamaged, case, command)] += 1
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
    print(f"{command}: {len(cases)} kinds of damage, {counts}, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
