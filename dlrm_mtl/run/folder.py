"""The folder of a run: its files, and the right to write into it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrm_mtl.checkpoint.state import CHECKPOINTS
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.yaml_text import parse_yaml
from dlrm_mtl.storage.output import write_whole

if TYPE_CHECKING:  # configurations need PyTorch, which reading a folder does not
    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.storage.run_lock import RunLock
    from dlrm_mtl.storage.run_store import RunStore

NO_RUN = "there is no run here; name the folder that `dlrm-mtl train` wrote, which holds config.yaml"
"""End of the error sentence about a folder without a run."""
_LEFT = re.compile(r"step_\d+(\.tmp)?|(latest|best|run\.json)(\.tmp)?")
"""Names of files and folders below ``checkpoints/`` that this program writes."""


class RunFiles:
    """The files of a run by their names.

    Args:
        path: folder of the files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.metrics = path / "metrics.jsonl"
        self.scores = path / "scores"
        self.tensorboard = path / "tensorboard"
        self.profile = path / "profile"
        self.checkpoints = path / CHECKPOINTS
        self.results = path / "results.json"
        self.contract = path / "contract.json"
        self.history = path / "history.jsonl"
        self.initial = path / "init.json"


class RunFolder(RunFiles):
    """The folder of a run that trains or is used, on this machine or on an object store.

    Args:
        store: files of the run; processes work in its local folder.
    """

    def __init__(self, store: RunStore) -> None:
        super().__init__(store.local)
        self.store = store
        self.place = store.place
        """Path or URI from the user."""

    def check(self, resume: bool, restarted: bool = False) -> bool:
        """Check, before anything is written, that a run may use this folder; return True if it continues a run there.

        Args:
            resume: True if the user asked to resume.
            restarted: True if the launcher of this job has started the run before.

        Raises:
            UserError: the folder cannot be written to, holds something other than a run, or a run that must not be
                continued.
        """
        from dlrm_mtl.storage.run_lock import LOCK

        there = [name for name in self.store.check_writable() if name not in (LOCK, self.history.name)]
        if there and self.config.name not in there:
            raise UserError(f"{self.place}: this folder holds other files; name a new or empty one with --output.")
        if there and not resume and not restarted:
            raise UserError(
                f"{self.place}: this folder already holds a run; continue it with --resume, or name another with --output."
            )
        if there:
            self._check_own()
        return resume or restarted

    def _check_own(self) -> None:
        """Refuse a folder that this program did not write, since a resumed run may remove files."""
        try:
            content = parse_yaml((self.store.read(self.config.name) or b"").decode())
        except ValueError:
            content = None
        if not isinstance(content, dict) or not {"data", "tasks"} <= content.keys():
            raise UserError(
                f"{self.place}: its {self.config.name} is not the configuration of a run of dlrm-mtl, so nothing here is "
                "touched; name another folder with --output."
            )

    def lock(self, restarted: bool) -> RunLock:
        """Lock on this folder, not yet taken; ``restarted`` as in :meth:`check`."""
        from dlrm_mtl.storage.run_lock import lock_of

        return lock_of(self.store, os.environ.get("TORCHELASTIC_RUN_ID", ""), restarted)

    def holds_run(self) -> bool:
        """Return True if there is a run here; for one process."""
        return self.store.read(self.config.name) is not None

    def clear(self) -> None:
        """Remove the files that a run leaves here before its first checkpoint is complete, and nothing else."""
        for name in self.store.names(CHECKPOINTS):
            if _LEFT.fullmatch(name):
                self.store.remove(f"{CHECKPOINTS}/{name}")
        for path in (self.tensorboard, self.metrics, self.scores):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            self.store.remove(path.name)

    def publish(self) -> None:
        """Publish changed files, except checkpoints, if the run is on an object store; for the first process."""
        self.store.publish()

    def create(self, config: RunConfig) -> None:
        """Create the folder and write the resolved configuration into it."""
        from dlrm_mtl.config.load import dump_config

        self.write(self.config, dump_config(config))

    def write_plan(self, plan: list[dict[str, Any]]) -> None:
        """Write the placement of each table."""
        self.write(self.plan, json.dumps(plan, indent=1))

    def write(self, path: Path, text: str) -> None:
        """Write one of the files, whole; raises :class:`UserError` where it cannot be written."""
        try:
            write_whole(path, text)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); make room, or correct the permissions, and go on with --resume."
            ) from None
