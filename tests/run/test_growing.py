"""Training on a folder that receives new files: each of them once, also across runs and kills."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests import commands, synthetic
from tests.commands import kill_tree, losses, start, wait_for_step, write_config

TRAINING = {"log_every": 1, "checkpoint_every": 2}


def growing(folder: Path, **changes: Any) -> Path:
    content = synthetic.config(folder, training=TRAINING, **changes)
    data: Any = content["data"]
    content["data"] = {**data, "growing": True}
    return write_config(folder / "run.yaml", content)


def arrive(folder: Path, name: str) -> None:
    """A copy of the first file comes as ``name``."""
    shutil.copy(folder / "train" / "part-0.parquet", folder / "train" / name)


def progress(run: Path) -> dict[str, Any]:
    latest = (run / "checkpoints" / "latest").read_text()
    content: dict[str, Any] = json.loads((run / "checkpoints" / latest / "progress.json").read_text())
    return content


def test_each_file_once_over_runs_and_kills(tmp_path: Path) -> None:
    folder = synthetic.write_dataset(tmp_path / "data", rows=600)
    config, run = growing(folder), tmp_path / "run"
    per_file = [pq.read_metadata(path).num_rows for path in sorted((folder / "train").iterdir())]
    first = commands.run("train", config, "--output", run, processes=2)
    assert first.returncode == 0, first.stderr
    assert f"round 1: 2 new file(s), {sum(per_file)} rows" in first.stdout
    steps = progress(run)["step"]

    arrive(folder, "part-2.parquet")
    arrive(folder, "part-3.parquet")
    (folder / "train" / "part-4.parquet").write_bytes(b"PAR1 and no footer yet")
    process = start("train", config, "--output", run, "--resume", processes=2, log=tmp_path / "log")
    wait_for_step(run / "metrics.jsonl", steps + 3, process)
    while progress(run)["step"] == steps and process.poll() is None:  # its checkpoint is written in the background
        time.sleep(0.01)
    kill_tree(process)
    process.wait()
    second = commands.run("train", config, "--output", run, "--resume")
    assert second.returncode == 0, second.stderr
    assert "resuming round 2: 2 new file(s)" in second.stdout
    assert "are left for the next round" in second.stdout
    assert "is_click" not in second.stdout
    done = progress(run)["consumed"]
    assert [file["name"] for file in done["done"]] == [f"part-{n}.parquet" for n in range(4)]
    assert (done["rounds"], done["current"]) == (2, [])
    assert sorted(losses(run / "metrics.jsonl")) == list(range(1, progress(run)["step"] + 1))

    uninterrupted = tmp_path / "uninterrupted"
    for name in ("part-2", "part-3", "part-4"):
        (folder / "train" / f"{name}.parquet").rename(tmp_path / name)
    assert commands.run("train", config, "--output", uninterrupted).returncode == 0
    for name in ("part-2", "part-3"):
        (tmp_path / name).rename(folder / "train" / f"{name}.parquet")
    assert commands.run("train", config, "--output", uninterrupted, "--resume").returncode == 0
    ours, theirs = losses(run / "metrics.jsonl"), losses(uninterrupted / "metrics.jsonl")
    assert ours.keys() == theirs.keys()
    for step, values in ours.items():
        for name, value in values.items():
            assert abs(value - theirs[step][name]) <= 1e-5 * abs(value), (step, name)

    nothing = commands.run("train", config, "--output", run, "--resume")
    assert nothing.returncode == 0
    assert "every file was used already; nothing to do" in nothing.stdout
    assert progress(run)["step"] == len(ours)

    # Stopped between its last step and its results, it still owes them.
    results = (run / "results.json").read_text()
    (run / "results.json").unlink()
    again = commands.run("train", config, "--output", run, "--resume")
    assert again.returncode == 0, again.stderr
    assert (run / "results.json").read_text() == results


def test_what_needs_an_end_is_refused(tmp_path: Path) -> None:
    folder = synthetic.write_dataset(tmp_path / "data", rows=100)
    config = growing(folder)
    for change, key in (("training.epochs=2", "training.epochs"), ("optimizer.schedule.decay=cosine", "decay")):
        done = commands.run("train", config, "--output", tmp_path / "run", "--set", change)
        assert done.returncode == 2
        assert key in done.stderr
        assert "data.growing" in done.stderr
    assert not (tmp_path / "run").exists()
