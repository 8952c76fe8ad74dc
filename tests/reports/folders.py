"""Folders of runs as ``dlrm-mtl train`` writes them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def write_run(
    folder: Path,
    seed: int = 1,
    auc: float = 0.7,
    steps: int = 6,
    architecture: str = "mmoe",
    more: dict[str, float] | None = None,
    finished: bool = True,
) -> Path:
    """A run of two tasks, evaluated at every second step; its AUC grows to ``auc``."""
    folder.mkdir(parents=True)
    config = {
        "name": folder.name,
        "seed": seed,
        "data": {"path": "data", "batch_size": 64},
        "tasks": [{"name": "click", "weight": 1.0}, {"name": "dwell", "kind": "real"}],
        "model": {"multitask": {"name": architecture, "layers": [8]}},
        "training": {"early_stopping": {"metric": "click/auc"}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    entries: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        scalars = {
            "loss/click": 1 / step + seed / 100,
            "loss/dwell": 2 / step,
            "seconds": 0.5 * step,
            "rows_per_second": 100.0,
        }
        counts = {
            "data_wait_share": 0.25,
            "epoch": 1,
            "skipped_steps": 1,
            "clipped_steps": step,
            "factor/user": 1 / step,
        }
        entries.append({"kind": "train", "step": step, **scalars, **counts, **(more or {})})
        if step % 2 == 0:
            best = auc - 0.01 * abs(step - 4)  # the best step is 4
            entries.append(
                {"kind": "validation", "step": step, "click/auc": best, "dwell/rmse": 3 + seed, "mean/auc": best}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    if finished:
        test = {"click/auc": auc - 0.02, "dwell/rmse": 4.0 + seed, "mean/auc": auc - 0.02, "click/positives": 12.0}
        (folder / "results.json").write_text(json.dumps({"step": 4, "test": test}))
    return folder
