"""The folder of a run: what lies where, and who may write into it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dlrm_mtl.config.load import dump_config, load_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.errors import UserError


class RunFolder:
    """``config.yaml``, ``plan.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and ``results.json`` of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.results = path / "results.json"

    def check(self, resume: bool) -> None:
        """Check, before anything is written, that a run may use this folder.

        Raises:
            UserError: it cannot be written to, or holds another run and ``resume`` is false.
        """
        existing = self.path
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{self.path}: this output folder cannot be written to; name another one with --output.")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not self.config.is_file():
                raise UserError(f"{self.path}: this folder holds other files; name a new or empty one with --output.")
            if not resume:
                raise UserError(
                    f"{self.path}: this folder already holds a run; continue it with --resume, or name another with --output."
                )

    def create(self, config: RunConfig) -> None:
        """Create the folder and write the resolved configuration into it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.config.write_text(dump_config(config), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: this output folder cannot be written to ({error.strerror}).") from None

    def write_plan(self, plan: list[dict[str, Any]]) -> None:
        """Write where each table lives."""
        self.plan.write_text(json.dumps(plan, indent=1), encoding="utf-8")


def open_run(path: Path, overrides: list[str] | None = None) -> tuple[RunFolder, RunConfig]:
    """The folder and configuration of a run that was trained before.

    Raises:
        UserError: there is no run in ``path``.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise UserError(
            f"{path}: there is no run here; name the folder that `dlrm-mtl train` wrote, which holds config.yaml."
        )
    return folder, load_config(folder.config, overrides)
