"""The folder of a run: what lies where, and who may write into it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrm_mtl.checkpoint.state import CHECKPOINTS
from dlrm_mtl.core.errors import UserError

if TYPE_CHECKING:  # configurations need PyTorch, which whoever only reads a folder does not
    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.storage.remote_folder import Mirror


class RunFolder:
    """``config.yaml``, ``plan.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and ``results.json`` of a run.

    ``profile/`` is there, too, if steps are traced.

    Args:
        path: where they lie.
        mirror: their copy on an object store, if it is there that the run belongs; ``path`` is a staging folder then.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self.path = path
        self.mirror = mirror
        self.place = mirror.uri if mirror else str(path)
        """What the user calls it."""
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.profile = path / "profile"
        self.checkpoints = path / CHECKPOINTS
        self.results = path / "results.json"

    def check(self, resume: bool) -> None:
        """Check, before anything is written, that a run may use this folder.

        Raises:
            UserError: it cannot be written to, or holds another run and ``resume`` is false.
        """
        there = self.mirror.check_writable() if self.mirror else self._check_writable()
        if there and self.config.name not in there:
            raise UserError(f"{self.place}: this folder holds other files; name a new or empty one with --output.")
        if there and not resume:
            raise UserError(
                f"{self.place}: this folder already holds a run; continue it with --resume, or name another with --output."
            )

    def _check_writable(self) -> list[str]:
        existing = self.path
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{self.path}: this output folder cannot be written to; name another one with --output.")
        return os.listdir(self.path) if self.path.is_dir() else []

    def clear(self) -> None:
        """Remove what a run leaves here before its first checkpoint is complete."""
        for path in (self.checkpoints, self.tensorboard):
            shutil.rmtree(path, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)
        if self.mirror is not None:
            for path in (self.checkpoints, self.tensorboard, self.metrics):
                self.mirror.remove(path.name)

    def publish(self) -> None:
        """Bring the copy on an object store, if there is one, up to date, except for checkpoints; for the first process."""
        if self.mirror is not None:
            self.mirror.publish()

    def create(self, config: RunConfig) -> None:
        """Create the folder and write the resolved configuration into it."""
        from dlrm_mtl.config.load import dump_config

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.config.write_text(dump_config(config), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: this output folder cannot be written to ({error.strerror}).") from None

    def write_plan(self, plan: list[dict[str, Any]]) -> None:
        """Write where each table lives."""
        self.plan.write_text(json.dumps(plan, indent=1), encoding="utf-8")
