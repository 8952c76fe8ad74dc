"""The configuration with every option of the AdaTT fork is valid, trains a step, and predicts into a named file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq

from tests import commands

ROOT = Path(__file__).parents[2]
CONFIG = "configs/studies/adatt_fork.yaml"
OPTIONS = [
    *("data_path", "label_cols", "sample_ratios", "varlen_sparse_features", "batch_size", "use_focal_loss"),
    *("max_varlen_len", "dense_norm", "emb_dim", "num_task_experts", "expert_out_dims", "num_shared_experts"),
    *("task_mlp", "activation_type", "epochs", "pos_weights", "is_flatten", "if_sample", "model_tag"),
]
"""Arguments of the fork's train.py."""


def test_the_page_and_the_configuration_have_every_option() -> None:
    page = (ROOT / "docs/studies/adatt_fork.md").read_text()
    table = page.partition("| --- | --- | --- |\n")[2].partition("\n\n")[0]
    listed = {name for row in table.splitlines() for name in re.findall(r"\w+", row.split("|")[1])}
    assert listed == {*OPTIONS, "model_key", "pred_data_path", "data_tag"}
    comments = " ".join(re.findall(r"# (.*)$", (ROOT / CONFIG).read_text(), re.M))
    assert [option for option in OPTIONS if option not in comments] == []


def test_it_trains_and_predicts(tmp_path: Path) -> None:
    few = ["training.max_steps=2", "training.evaluate_every=2", "data.evaluation_batch_size=4096"]
    settings = [word for one in few for word in ("--set", one)]
    run, output = tmp_path / "adatt_fork", tmp_path / "adatt_fork_test.parquet"
    done = commands.run("train", CONFIG, "--output", run, *settings, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    test = json.loads((run / "results.json").read_text())["test"]
    for task in ("is_click", "long_view", "is_like", "is_profile_enter"):
        assert {f"{task}/{metric}" for metric in ("auc", "recall", "precision", "ks")} <= test.keys()
        assert 0 <= test[f"{task}/ks"] <= 1
    rows = pq.read_table(ROOT / "datasets/kuairand_pure/test").slice(0, 100)
    pq.write_table(rows, tmp_path / "rows.parquet")
    done = commands.run("predict", run, "--input", tmp_path / "rows.parquet", "--output", output, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(output).num_rows == 100
