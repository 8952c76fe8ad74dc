"""A data set, features, labels, tasks, folders and a run with hostile names, through every command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.hostile import NAMES

ROWS = 400
FOLDER = "-it's [1] {a} * 50%20 ü ~$HOME"
"""No question mark, below which DuckDB keeps no database: prepare says so in a sentence."""
LABELS = ["click[/7d]", "ctr[a]", "ctr[b]", "it's <b>%s</b>"]


def test_every_command(tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    rng = np.random.default_rng(0)
    raw, data, run = (tmp_path / FOLDER / name for name in ("raw[0]", "data [x]", "run 'a'"))
    raw.mkdir(parents=True)
    columns = {name: rng.integers(0, 9, ROWS) for name in NAMES} | {name: rng.integers(0, 2, ROWS) for name in LABELS}
    pq.write_table(pa.table(columns), raw / "part[1].parquet")
    description = {
        "name": "logs [2024] <b>",
        "features": [{"name": name, "kind": "sparse"} for name in NAMES],
        "labels": [{"name": name} for name in LABELS],
    }
    (raw.parent / "description [1].yaml").write_text(yaml.safe_dump(description))
    config = {
        "name": "run [/b] %s",
        "data": {"path": str(data), "batch_size": 64},
        "tasks": [{"name": name} for name in LABELS],
        "model": {
            "embeddings": {"dim": 4},
            "multitask": {"name": "shared_bottom", "layers": [4]},
            "tower": {"layers": []},
        },
        "training": {"epochs": 1, "early_stopping": {"metric": f"{LABELS[0]}/auc", "patience": 3}},
    }
    file = raw.parent / "config {1}.yaml"
    file.write_text(yaml.safe_dump(config))

    def works(*arguments: object) -> str:
        code, printed = call(*arguments)
        assert code == 0, printed
        assert "Traceback" not in printed
        return printed

    works("prepare", "table", "--input", raw, "--description", raw.parent / "description [1].yaml", "--output", data)
    page = tmp_path / "page [1].html"
    printed = works("data", "describe", data, "--html", page)
    assert all(label in printed for label in LABELS)
    assert "<b>%s</b>" not in page.read_text()
    assert "click[/7d]" in works("config", "check", file)
    works("models", file)
    printed = works("train", file, "--output", run)
    assert all(label in printed for label in LABELS)
    printed = works("evaluate", run)
    assert all(label in printed for label in LABELS)
    out = tmp_path / "out [1].parquet"
    works("predict", run, "--input", data / "test", "--output", out, "--carry", NAMES[0])
    assert pq.read_table(out).column_names == [NAMES[0], *LABELS]
    shutil.copytree(run, tmp_path / "other [1]")
    printed = works("compare", run, tmp_path / "other [1]", "--html", tmp_path / "compare.html")
    assert all(label in printed for label in LABELS)
