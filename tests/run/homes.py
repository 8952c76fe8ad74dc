"""A folder with a data set, a configuration, and a run that others are compared with."""

from __future__ import annotations

from pathlib import Path

from tests import commands, synthetic


def write_home(folder: Path, training: dict[str, object], dim: int, *options: str) -> Path:
    """Write ``data`` and ``run.yaml`` with tables of ``dim`` columns, and train ``whole`` on two processes."""
    synthetic.write_dataset(folder / "data", rows=400)
    content = synthetic.config(folder / "data", training=training)
    content["model"]["embeddings"]["dim"] = dim  # type: ignore[index]
    commands.write_config(folder / "run.yaml", content)
    done = commands.run("train", folder / "run.yaml", "--output", folder / "whole", *options, processes=2)
    assert done.returncode == 0, done.stderr
    return folder
