"""Runs from Python: in this process, and in a script that torchrun's twin starts twice; predictions by several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dlrm_mtl
from tests import commands, synthetic

SCRIPT = """
import sys
import dlrm_mtl

config = dlrm_mtl.load_config(sys.argv[1])
run = dlrm_mtl.train(config, sys.argv[2], progress=False)
assert run.evaluate() == run.metrics
table = run.predict(sys.argv[3], carry=["row"], batch_size=100)
run.predict(sys.argv[3], sys.argv[2] + "/out.parquet", carry=["row"], batch_size=37)
print("done", run.metrics["click/auc"], table is not None and table.num_rows)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=800)


@pytest.fixture(scope="module")
def config(dataset: Path) -> Path:
    return commands.write_config(
        dataset / "run.yaml", synthetic.config(dataset, training={"epochs": 1, "log_every": 2})
    )


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dlrm_mtl.Run:
    loaded = dlrm_mtl.load_config(config, overrides=["training.max_steps=10"])
    return dlrm_mtl.train(loaded, output=tmp_path_factory.mktemp("runs") / "one", progress=False)


@pytest.fixture(scope="module")
def predicted(run: dlrm_mtl.Run, dataset: Path) -> pa.Table:
    return run.predict(dataset / "test", carry=["row"])


def test_a_run_says_what_it_is(run: dlrm_mtl.Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run.config.training.max_steps == 10
    assert run.metrics == json.loads((Path(run.folder) / "results.json").read_text())["test"]
    steps = [entry["step"] for entry in run.history if entry["kind"] == "train"]
    assert steps == [2, 4, 6, 8, 10]
    again = dlrm_mtl.open_run(run.folder)
    assert again.metrics == run.metrics
    assert again.config == run.config
    dlrm_mtl.compare([again])
    assert f"{run.metrics['click/auc']:.4f}" in capfd.readouterr().out
    assert repr(again) == f"Run({run.folder!r})"


def test_evaluating_again_gives_the_same(run: dlrm_mtl.Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run.evaluate() == run.metrics
    last = [entry for entry in run.history if entry["kind"] == "validation"][-1]
    validation = dlrm_mtl.evaluate(run.folder, "validation", checkpoint="latest")
    assert validation == {key: last[key] for key in validation}
    assert capfd.readouterr().out == ""


def test_predictions_as_a_table_and_as_a_file(
    run: dlrm_mtl.Run, predicted: pa.Table, dataset: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(dataset / "test")
    assert predicted.column_names == ["row", "click", "buy"]
    assert predicted["row"].to_pylist() == rows["row"].to_pylist()
    assert run.predict(dataset / "test", tmp_path / "out.parquet", carry=["row"]) is None
    assert pq.read_table(tmp_path / "out.parquet").equals(predicted)
    from sklearn.metrics import roc_auc_score

    auc = roc_auc_score(rows["click"].to_numpy(), predicted["click"].to_numpy())
    assert auc == pytest.approx(run.metrics["click/auc"], abs=1e-6)


@pytest.mark.parametrize("batch_size", [37, 150])
def test_two_processes_predict_the_same_rows_in_order(
    run: dlrm_mtl.Run, predicted: pa.Table, dataset: Path, tmp_path: Path, batch_size: int
) -> None:
    """In batches of 37 the two files have 3 + 3 batches; in those of 150 one each."""
    out = tmp_path / "out.parquet"
    arguments: tuple[Any, ...] = ("--input", dataset / "test", "--output", out, "--carry", "row")
    done = commands.run("predict", run.folder, *arguments, "--batch-size", batch_size, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("200 rows, columns row, click, buy") == 1
    same_rows(pq.read_table(out), predicted)


def test_a_mistake_that_one_process_finds_leaves_no_file(run: dlrm_mtl.Run, dataset: Path, tmp_path: Path) -> None:
    table = pq.read_table(dataset / "test")
    ids = table["item"].to_pylist()
    ids[60] = 10_000  # in the second batch, which is the second process's
    column = table.column_names.index("item")
    pq.write_table(table.set_column(column, "item", pa.array(ids, pa.int32())), tmp_path / "rows.parquet")
    arguments = ("--input", tmp_path / "rows.parquet", "--output", tmp_path / "out.parquet", "--batch-size", 50)
    done = commands.run("predict", run.folder, *arguments, processes=2)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "10000" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.parquet"]
    done = commands.run("predict", run.folder, *arguments, "--set", "data.out_of_range=unknown", processes=2)
    assert done.returncode == 0, done.stderr
    assert "read as unknown: item 1" in done.stdout


def test_a_script_under_a_launcher(config: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "dlrm_mtl.launcher", "--standalone", "--nproc-per-node", "2"]
    line = [*launcher, str(tmp_path / "script.py"), str(config), str(tmp_path / "run"), str(dataset / "test")]
    done = subprocess.run(line, env=commands.ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    auc = dlrm_mtl.open_run(tmp_path / "run").metrics["click/auc"]
    assert sorted(done.stdout.split("\n")[:-1]) == [f"done {auc} 200", f"done {auc} False"]
    alone = dlrm_mtl.predict(tmp_path / "run", dataset / "test", carry=["row"])
    assert alone is not None
    same_rows(pq.read_table(tmp_path / "run" / "out.parquet"), alone)


def same_rows(found: pa.Table, wanted: pa.Table) -> None:
    assert found.column_names == wanted.column_names
    assert found["row"].to_pylist() == wanted["row"].to_pylist()
    for task in ("click", "buy"):
        np.testing.assert_allclose(found[task].to_numpy(), wanted[task].to_numpy(), rtol=1e-5)


def test_mistakes_are_told(tmp_path: Path, dataset: Path, run: dlrm_mtl.Run) -> None:
    with pytest.raises(dlrm_mtl.UserError, match="there is no run here"):
        dlrm_mtl.open_run(tmp_path)
    with pytest.raises(dlrm_mtl.UserError, match="there is no checkpoint 'step_7'"):
        run.predict(dataset / "test", checkpoint="step_7")
    with pytest.raises(dlrm_mtl.UserError, match="already holds a run"):
        dlrm_mtl.train(run.config, run.folder)
