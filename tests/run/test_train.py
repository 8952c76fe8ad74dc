"""Whole runs in real processes: results, resuming after a kill, stopping on Ctrl-C, using the trained model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import commands, synthetic
from tests.commands import kill_tree, losses, start, wait_for_step, write_config

TRAINING = {"epochs": 3, "log_every": 1, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=1200)


@pytest.fixture(scope="module")
def config(dataset: Path) -> Path:
    return write_config(dataset / "run.yaml", synthetic.config(dataset, training=TRAINING))


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on two processes."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = commands.run_launched("train", config, "--output", folder, processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "click" in done.stdout
    assert "Sharding plan" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return folder


def test_a_run_leaves_its_results(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())["test"]
    assert results["click/auc"] > 0.6
    assert 0 < results["click/log_loss"] < 1
    names = {path.name for path in finished.iterdir()}
    written = {"config.yaml", "contract.json", "plan.json", "metrics.jsonl", "history.jsonl", "results.json"}
    assert names == {*written, "scores", "tensorboard", "checkpoints"}
    assert any((finished / "tensorboard").iterdir())
    assert not list(finished.rglob("*.tmp"))
    kinds = {entry["kind"] for entry in commands.read_metrics(finished / "metrics.jsonl")}
    assert kinds == {"train", "validation"}


def test_the_resolved_configuration_trains_the_same_model(finished: Path, tmp_path: Path) -> None:
    again = commands.run("train", finished / "config.yaml", "--output", tmp_path / "again", processes=2)
    assert again.returncode == 0, again.stderr
    assert losses(tmp_path / "again" / "metrics.jsonl") == losses(finished / "metrics.jsonl")


def test_resuming_after_a_kill_is_bit_identical(config: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for step in (7, 23):  # the second time it is a resumed run that dies
        process = start("train", config, "--output", folder, "--resume", processes=2, log=tmp_path / "log")
        wait_for_step(folder / "metrics.jsonl", step, process)
        kill_tree(process)
        process.wait()
    resumed = commands.run("train", config, "--output", folder, "--resume", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stdout
    assert losses(folder / "metrics.jsonl") == losses(finished / "metrics.jsonl")
    assert json.loads((folder / "results.json").read_text()) == json.loads((finished / "results.json").read_text())


def test_resuming_on_four_processes_is_bit_identical(config: Path, tmp_path: Path) -> None:
    """With more than two, the order matters in which processes are summed up, and DDP has two of them."""
    whole = commands.run("train", config, "--output", tmp_path / "whole", processes=4)
    assert whole.returncode == 0, whole.stderr
    process = start("train", config, "--output", tmp_path / "killed", processes=4, log=tmp_path / "log")
    wait_for_step(tmp_path / "killed" / "metrics.jsonl", 12, process)
    kill_tree(process)
    process.wait()
    resumed = commands.run("train", config, "--output", tmp_path / "killed", "--resume", processes=4)
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = (losses(tmp_path / name / "metrics.jsonl") for name in ("killed", "whole"))
    assert ours == theirs


def test_resuming_with_another_number_of_processes(config: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    process = start("train", config, "--output", folder, processes=2, log=tmp_path / "log")
    wait_for_step(folder / "metrics.jsonl", 12, process)
    kill_tree(process)
    process.wait()
    resumed = commands.run("train", config, "--output", folder, "--resume", "--set", "sharding.default=row_wise")
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = losses(folder / "metrics.jsonl"), losses(finished / "metrics.jsonl")
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        assert ours[step] == pytest.approx(values, rel=1e-5), f"step {step}"


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_saves_and_says_how_to_go_on(config: Path, tmp_path: Path, processes: int) -> None:
    folder, log = tmp_path / "stopped", tmp_path / "log"
    many = ["--set", "training.epochs=200"]
    process = start("train", config, "--output", folder, *many, processes=processes, log=log)
    wait_for_step(folder / "metrics.jsonl", 6, process)
    kill_tree(process, signal.SIGINT)  # a terminal sends it to the whole foreground group
    assert process.wait(60) != 0
    assert "the checkpoint is saved" in log.read_text()
    latest = (folder / "checkpoints" / "latest").read_text()
    steps = max(losses(folder / "metrics.jsonl"))
    assert latest == f"step_{steps:08d}"


def test_a_signal_to_one_process_stops_all_after_the_step_whatever_is_logged(config: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "stopped", tmp_path / "log"
    rare = ["--set", "training.epochs=10000", "--set", "training.log_every=1000000"]
    process = start("train", config, "--output", folder, *rare, processes=2, log=log)
    while not (folder / "checkpoints" / "latest").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGTERM)
    assert process.wait(60) != 0
    (stopped,) = re.findall(r"stopped after step (\d+) of \d+; the checkpoint is saved", log.read_text())
    assert (folder / "checkpoints" / "latest").read_text() == f"step_{int(stopped):08d}"


@pytest.mark.parametrize("rate", [0.1, 1e30], ids=["finished", "failed"])
def test_no_thread_outlives_a_run(config: Path, tmp_path: Path, rate: float) -> None:
    """A thread of gloo's that runs while the interpreter ends aborts the process now and then."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, glob\n"
        "names = lambda: [open(file).read().strip() for file in glob.glob('/proc/self/task/*/comm')]\n"
        "atexit.register(lambda: print('threads at the end:', *names(), flush=True))\n"
    )
    few = ["training.epochs=1", "training.max_skipped_steps=1", f"optimizer.sparse.learning_rate={rate}"]
    changes = [part for change in few for part in ("--set", change)]
    done = subprocess.run(
        commands.command("train", config, "--output", tmp_path / "run", *changes, processes=2),
        env={**commands.ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode == 0) == (rate == 0.1), done.stderr
    ends = [line for line in done.stdout.splitlines() if "threads at the end" in line]
    assert len(ends) >= 2
    assert not [line for line in ends[:2] if "gloo" in line]


def test_evaluate_repeats_the_results_alone(finished: Path) -> None:
    done = commands.run("evaluate", finished)
    assert done.returncode == 0, done.stderr
    auc = json.loads((finished / "results.json").read_text())["test"]["click/auc"]
    assert f"{auc:.4f}" in done.stdout


def test_predict_keeps_rows_and_columns(finished: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.parquet"
    done = commands.run(
        "predict", finished, "--input", dataset / "test", "--output", out, "--carry", "row", "--batch-size", 37
    )
    assert done.returncode == 0, done.stderr
    table, rows = pq.read_table(out), pq.read_table(dataset / "test")
    assert table.column_names == ["row", "click", "buy"]
    assert table["row"].to_pylist() == rows["row"].to_pylist()
    click = table["click"].to_numpy()
    assert ((click > 0) & (click < 1)).all()
    from sklearn.metrics import roc_auc_score

    results = json.loads((finished / "results.json").read_text())["test"]
    assert roc_auc_score(rows["click"].to_numpy(), click) == pytest.approx(results["click/auc"], abs=1e-6)
    one_batch = tmp_path / "one.parquet"
    commands.run("predict", finished, "--input", dataset / "test", "--output", one_batch)
    np.testing.assert_allclose(pq.read_table(one_batch)["click"].to_numpy(), click, rtol=1e-5)


def test_predict_without_labels(finished: Path, dataset: Path, tmp_path: Path) -> None:
    rows = pq.read_table(dataset / "test").drop_columns(["click", "buy"])
    pq.write_table(rows, tmp_path / "rows.parquet")
    done = commands.run("predict", finished, "--input", tmp_path / "rows.parquet", "--output", tmp_path / "out.parquet")
    assert done.returncode == 0, done.stderr
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == rows.num_rows


def spoil(dataset: Path, rows: slice) -> None:
    """Give rows a price so large that the loss overflows."""
    file = dataset / "train" / "part-0.parquet"
    table = pq.read_table(file)
    price = table["price"].to_numpy().copy()
    price[rows] = 1e38
    position = table.column_names.index("price")
    pq.write_table(table.set_column(position, "price", [price]), file, row_group_size=100)


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_named(tmp_path: Path) -> None:
    dataset = synthetic.write_dataset(tmp_path / "data", rows=640)
    spoil(dataset, slice(3, 4))
    content = synthetic.config(dataset, training={"epochs": 1, "log_every": 1})
    done = commands.run(
        "train", write_config(tmp_path / "run.yaml", content), "--output", tmp_path / "run", processes=2
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "skipped" in line]
    assert "gradient is not finite in" in line
    assert "tables.user" in line
    assert "dense" in line
    assert "click" in line
    entries = [e for e in commands.read_metrics(tmp_path / "run" / "metrics.jsonl") if e["kind"] == "train"]
    assert entries[-1]["skipped_steps"] == 1
    assert entries[-1]["loss/click"] < 2


def test_a_run_that_keeps_failing_ends_with_a_clear_message(tmp_path: Path) -> None:
    dataset = synthetic.write_dataset(tmp_path / "data", rows=640)
    spoil(dataset, slice(None))
    training = {"epochs": 1, "log_every": 1, "max_skipped_steps": 3}
    config = write_config(tmp_path / "run.yaml", synthetic.config(dataset, training=training))
    done = commands.run("train", config, "--output", tmp_path / "run", processes=2)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "3 steps in a row met a gradient that is not finite" in done.stderr
